from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages.base import StageError
from stages.catalog import EVALUATE
from stages.core.records import JUDGEMENTS
from stages.io.artifact import Artifact
from stages.io.filenames import RECORDS
from stages.judge.config import EvaluateConfig
from tests import artifacts


def judged(folder: Path, name: str, scores: dict[str, list[float]]) -> Artifact:
    """What the judge stage leaves behind for some answers, each prompt in a part of its own."""
    parts = [
        [{"prompt_id": prompt, "sample": n, "score": s, "reason": ""} for n, s in enumerate(values)]
        for prompt, values in scores.items()
    ]
    every = [s for values in scores.values() for s in values]
    return artifacts.of_rows(folder, name, RECORDS, parts, JUDGEMENTS, {"mean_score": sum(every) / len(every)})


def run(
    folder: Path, policy: dict[str, list[float]], baseline: dict[str, list[float]], **config: Any
) -> tuple[dict[str, Any], dict[str, float]]:
    """The stage's summary and the artifact it writes."""
    inputs = {"policy": judged(folder, "policy", policy), "baseline": judged(folder, "baseline", baseline)}
    made = artifacts.run(EVALUATE, folder, EvaluateConfig(resamples=200, **config), inputs)
    return dict(made.summary), json.loads(made.path("win_rates.json").read_text())


def test_win_rates_by_prompt_and_their_mean(tmp_path: Path) -> None:
    """Prompt b: 0.5 loses to 1 and ties with 0.5, 2 wins twice: 2.5 / 4. Prompt a: both win: 1. Mean 0.8125."""
    summary, rates = run(tmp_path, {"b": [0.5, 2.0], "a": [1.0, 1.0]}, {"a": [0.0, 0.5], "b": [1.0, 0.5]})
    assert rates == {"a": 1.0, "b": 0.625}
    assert summary["win_rate"]["mean"] == 0.8125
    assert summary["win_rate"]["prompts"] == 2
    assert 0.625 <= summary["win_rate"]["low"] < summary["win_rate"]["high"] <= 1.0
    assert summary["judge_score"] == 1.125
    assert summary["baseline_score"] == 0.5
    assert json.loads(json.dumps(summary)) == summary


def test_a_policy_against_itself_wins_half(tmp_path: Path) -> None:
    scores = {"a": [0.1, 0.9, 0.4], "b": [0.2, 0.2, 0.2]}
    summary, _ = run(tmp_path, scores, scores)
    assert summary["win_rate"] == {"mean": 0.5, "low": 0.5, "high": 0.5, "prompts": 2}


def test_prompts_of_one_side_alone_do_not_count(tmp_path: Path) -> None:
    summary, _ = run(tmp_path, {"a": [1.0], "b": [9.0]}, {"a": [0.0], "c": [9.0]})
    assert summary["win_rate"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "prompts": 1}


def test_sides_without_a_common_prompt_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no prompt was answered and judged on both sides"):
        run(tmp_path, {"a": [1.0]}, {"b": [1.0]})


def test_confidence_widens_the_interval(tmp_path: Path) -> None:
    policy = {f"{i}": [float(i % 3)] for i in range(20)}
    baseline = {f"{i}": [1.0] for i in range(20)}
    widths = []
    for confidence in (0.5, 0.99):
        folder = tmp_path / f"{confidence}"
        folder.mkdir()
        rate = run(folder, policy, baseline, confidence=confidence)[0]["win_rate"]
        widths.append(rate["high"] - rate["low"])
    assert 0 < widths[0] < widths[1]
