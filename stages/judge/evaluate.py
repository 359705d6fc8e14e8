"""Win rate of a policy over a baseline on held-out prompts, with its interval."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict

from stages.base import Artifact, StageContext, Summary
from stages.core.metrics import bootstrap, win_rates
from stages.io.filenames import RECORDS
from stages.io.tables import read_rows
from stages.judge.config import EvaluateConfig


def run(config: EvaluateConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Compare the judged answers of both sides prompt by prompt; bootstrap over prompts."""
    scores = {role: _scores(inputs[role]) for role in ("policy", "baseline")}
    rates = win_rates(scores["policy"], scores["baseline"])
    interval = bootstrap(rates, config.resamples, config.confidence, config.seed)
    summary = {
        "win_rate": {**asdict(interval), "prompts": len(rates)},
        "judge_score": inputs["policy"].summary["mean_score"],
        "baseline_score": inputs["baseline"].summary["mean_score"],
    }
    details = dict(zip(sorted(scores["policy"]), rates, strict=True))
    (context.output / "win_rates.json").write_text(json.dumps(details, indent=2), encoding="utf-8")
    return summary


def _scores(judged: Artifact) -> dict[str, list[float]]:
    scores: dict[str, list[float]] = defaultdict(list)
    for row in read_rows(judged.path / RECORDS):
        scores[row["prompt_id"]].append(row["score"])
    return scores
