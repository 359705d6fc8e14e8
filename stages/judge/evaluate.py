"""Win rate of a policy over a baseline on held-out prompts, with its interval."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict

from stages.base import StageError, Summary
from stages.core.metrics import bootstrap, win_rates
from stages.io.artifact import Artifact
from stages.io.context import StageContext
from stages.io.filenames import RECORDS
from stages.io.tables import rows_of
from stages.judge.config import EvaluateConfig


def run(config: EvaluateConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Compare the judged answers of both sides prompt by prompt; bootstrap over prompts.

    Raises:
        StageError: the sides have no prompt in common.
    """
    scores = {role: _scores(inputs[role]) for role in ("policy", "baseline")}
    both = scores["policy"].keys() & scores["baseline"].keys()  # a template or a judge may have refused some on a side
    if not both:
        raise StageError("no prompt was answered and judged on both sides")
    rates = win_rates(*({prompt: side[prompt] for prompt in both} for side in scores.values()))
    interval = bootstrap(rates, config.resamples, config.confidence, config.seed)
    summary = {
        "win_rate": {**asdict(interval), "prompts": len(rates)},
        "judge_score": inputs["policy"].summary["mean_score"],
        "baseline_score": inputs["baseline"].summary["mean_score"],
    }
    details = dict(zip(sorted(both), rates, strict=True))
    with context.output.part("win_rates") as part:
        (part.folder / "win_rates.json").write_text(json.dumps(details, indent=2), encoding="utf-8")
    return summary


def _scores(judged: Artifact) -> dict[str, list[float]]:
    scores: dict[str, list[float]] = defaultdict(list)
    for row in rows_of(judged.tables(RECORDS)):
        scores[row["prompt_id"]].append(row["score"])
    return scores
