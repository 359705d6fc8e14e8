from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from stages.base import StageError
from stages.catalog import EVALUATE
from stages.core.records import JUDGEMENTS, ROLLOUTS, VERDICTS, Rollout
from stages.io.artifact import Artifact
from stages.io.filenames import RECORDS, VERDICT_RECORDS
from stages.judge.config import EvaluateConfig
from stages.judge.protocol import Judgement, Verdict
from tests import artifacts

Scores = dict[str, list[float]]


def answered(folder: Path, name: str, answers: Mapping[str, Sequence[str]], task: Mapping[str, str] = {}) -> Artifact:
    rollouts = [
        Rollout(prompt, sample, [{"role": "user", "content": f"Question {prompt}"}], text, len(text.split()), "stop",
                metadata=json.dumps({"kind": task[prompt]} if prompt in task else {}))
        for prompt, texts in answers.items()
        for sample, text in enumerate(texts)
    ]  # fmt: skip
    rows = [{**asdict(each), "policy": "x", "sampling": "{}"} for each in rollouts]
    return artifacts.of_rows(folder, name, RECORDS, [rows], ROLLOUTS)


def judged(folder: Path, name: str, scores: Scores) -> Artifact:
    """What the judge stage leaves behind for some answers, each prompt in a part of its own."""
    parts = [
        [asdict(Judgement(prompt, n, score)) for n, score in enumerate(values)] for prompt, values in scores.items()
    ]
    return artifacts.of_rows(folder, name, RECORDS, parts, JUDGEMENTS)


def compared(folder: Path, name: str, preferences: Scores) -> Artifact:
    said = {"agreement": 0.4, "position": {"asked_twice": 4}}
    rows = [
        asdict(Verdict(prompt, n, n, preference))
        for prompt, values in preferences.items()
        for n, preference in enumerate(values)
    ]
    return artifacts.of_rows(folder, name, VERDICT_RECORDS, [rows], VERDICTS, said)


def texts(scores: Scores, word: str = "word") -> dict[str, list[str]]:
    return {prompt: [f"{word} {n}" for n in range(len(values))] for prompt, values in scores.items()}


def evaluate(folder: Path, inputs: Mapping[str, Artifact], **config: Any) -> Artifact:
    return artifacts.run(EVALUATE, folder, EvaluateConfig(resamples=200, **config), inputs)


def run(folder: Path, policy: Scores, baseline: Scores, **config: Any) -> tuple[dict[str, Any], dict[str, float]]:
    """The stage's summary, and the win rates against the only baseline."""
    inputs = {
        "policy": answered(folder, "policy", texts(policy)), "judged": judged(folder, "judged", policy),
        "baseline.base": answered(folder, "baseline", texts(baseline)),
        "baseline_judged.base": judged(folder, "baseline_judged", baseline),
    }  # fmt: skip
    made = evaluate(folder, inputs, **config)
    return dict(made.summary), json.loads(made.path("win_rates.json").read_text())["base"]


def test_win_rates_by_prompt_and_their_mean(tmp_path: Path) -> None:
    """Prompt b: 0.5 loses to 1 and ties with 0.5, 2 wins twice: 2.5 / 4. Prompt a: both win: 1. Mean 0.8125."""
    summary, rates = run(tmp_path, {"b": [0.5, 2.0], "a": [1.0, 1.0]}, {"a": [0.0, 0.5], "b": [1.0, 0.5]})
    assert rates == {"a": 1.0, "b": 0.625}
    assert summary["win_rate"]["mean"] == 0.8125
    assert summary["win_rate"]["prompts"] == 2
    assert 0.625 <= summary["win_rate"]["low"] < summary["win_rate"]["high"] <= 1.0
    found = summary["against"]["base"]
    assert (found["wins"], found["ties"], found["losses"]) == (0.75, 0.125, 0.125)
    assert summary["judge_score"] == 1.125
    assert summary["baseline_score"] == 0.5
    assert json.loads(json.dumps(summary)) == summary


def test_a_policy_against_itself_wins_half(tmp_path: Path) -> None:
    scores = {"a": [0.1, 0.9, 0.4], "b": [0.2, 0.2, 0.2]}
    summary, _ = run(tmp_path, scores, scores)
    assert summary["win_rate"] == {"mean": 0.5, "low": 0.5, "high": 0.5, "prompts": 2}
    assert summary["against"]["base"]["length_controlled"]["mean"] == pytest.approx(0.5)
    assert summary["against"]["base"]["length_ratio"] == 1


def test_prompts_of_one_side_alone_do_not_count(tmp_path: Path) -> None:
    summary, _ = run(tmp_path, {"a": [1.0], "b": [9.0]}, {"a": [0.0], "c": [9.0]})
    assert summary["win_rate"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "prompts": 1}


def test_sides_without_a_common_prompt_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no prompt was answered and judged on both sides, of the new policy and of b"):
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


def test_verdicts_decide_where_the_judge_compares(tmp_path: Path) -> None:
    """Prompt a: 1 and 0.75 are wins, prompt b: a tie and a loss. Rates 0.875 and 0.25."""
    verdicts = {"a": [1.0, 0.75], "b": [0.5, 0.0]}
    inputs = {
        "policy": answered(tmp_path, "policy", texts(verdicts)),
        "baseline.base": answered(tmp_path, "baseline", texts(verdicts)),
        "verdicts.base": compared(tmp_path, "verdicts", verdicts),
    }  # fmt: skip
    made = evaluate(tmp_path, inputs)
    found = made.summary["against"]["base"]
    assert (found["wins"], found["ties"], found["losses"]) == (0.5, 0.25, 0.25)
    assert made.summary["win_rate"]["mean"] == 0.5625
    assert made.summary["judge_score"] is None
    assert (found["agreement"], found["position"]) == (0.4, {"asked_twice": 4})
    assert json.loads(made.path("win_rates.json").read_text()) == {"base": {"a": 0.875, "b": 0.25}}


def test_several_baselines_and_the_first_one_counts(tmp_path: Path) -> None:
    policy, weak, strong = {"a": [1.0]}, {"a": [0.0]}, {"a": [2.0]}
    inputs = {"policy": answered(tmp_path, "policy", texts(policy)), "judged": judged(tmp_path, "judged", policy)}
    for name, scores in (("base", weak), ("previous", strong)):
        inputs[f"baseline.{name}"] = answered(tmp_path, name, texts(scores))
        inputs[f"baseline_judged.{name}"] = judged(tmp_path, f"{name}_judged", scores)
    summary = evaluate(tmp_path, inputs, against=("previous", "base")).summary
    assert [summary["against"][name]["win_rate"]["mean"] for name in ("base", "previous")] == [1.0, 0.0]
    assert list(summary["against"]) == ["previous", "base"]
    assert (summary["baseline"], summary["win_rate"]["mean"], summary["baseline_score"]) == ("previous", 0.0, 2.0)


def longer(scores: Scores, words: int) -> dict[str, list[str]]:
    return {prompt: ["word " * words] * len(values) for prompt, values in scores.items()}


def test_a_win_by_length_alone_is_controlled(tmp_path: Path) -> None:
    """60 prompts: the policy's answer is longer on two thirds and wins exactly there; the length explains it."""
    prompts = [f"{n:02d}" for n in range(60)]
    ours = {prompt: ["word " * (20 if n % 3 else 5)] for n, prompt in enumerate(prompts)}
    theirs = {prompt: ["word " * 10] for prompt in prompts}
    inputs = {
        "policy": answered(tmp_path, "policy", ours), "baseline.base": answered(tmp_path, "baseline", theirs),
        "verdicts.base": compared(tmp_path, "verdicts", {p: [1.0 if n % 3 else 0.0] for n, p in enumerate(prompts)}),
    }  # fmt: skip
    found = evaluate(tmp_path, inputs).summary["against"]["base"]
    assert found["win_rate"]["mean"] == pytest.approx(2 / 3)
    assert found["length_controlled"]["mean"] < 0.6
    assert found["length_ratio"] == pytest.approx(1.5)  # 15 words for 10


def test_lengths_that_do_not_overlap_cannot_be_controlled_for(tmp_path: Path) -> None:
    prompts = [f"{n:02d}" for n in range(20)]
    ours = {prompt: ["word " * (200 + n % 2)] for n, prompt in enumerate(prompts)}
    inputs = {
        "policy": answered(tmp_path, "policy", ours),
        "baseline.base": answered(tmp_path, "baseline", {prompt: ["word"] for prompt in prompts}),
        "verdicts.base": compared(tmp_path, "verdicts", {prompt: [0.75] for prompt in prompts}),
    }  # fmt: skip
    assert evaluate(tmp_path, inputs).summary["against"]["base"]["length_controlled"] is None


def test_what_does_not_exist_is_no_number(tmp_path: Path) -> None:
    summary, _ = run(tmp_path, {"a": [1.0]}, {"a": [1.0]})
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    inputs = {
        "policy": answered(tmp_path / "b", "policy", {"a": ["one"]}),
        "baseline.base": answered(tmp_path / "b", "baseline", {"a": ["two"]}),
        "verdicts.base": compared(tmp_path / "b", "verdicts", {"a": [1.0]}),
    }
    assert evaluate(tmp_path / "b", inputs).summary["answers"]["policy"]["distinct_2"] is None


def test_each_task_has_its_figures(tmp_path: Path) -> None:
    policy, baseline = {"a": [1.0], "b": [0.0], "c": [5.0]}, {"a": [0.0], "b": [0.5], "c": [5.0]}
    tasks = {"a": "math", "b": "code"}
    inputs = {
        "policy": answered(tmp_path, "policy", texts(policy), tasks), "judged": judged(tmp_path, "judged", policy),
        "baseline.base": answered(tmp_path, "baseline", texts(baseline), tasks),
        "baseline_judged.base": judged(tmp_path, "baseline_judged", baseline),
    }  # fmt: skip
    found = evaluate(tmp_path, inputs, task="kind").summary["against"]["base"]["tasks"]
    assert found.keys() == {"math", "code"}
    assert found["math"]["win_rate"]["mean"] == 1.0
    assert found["code"]["change"] == {"mean": -0.5, "low": -0.5, "high": -0.5}
    assert (found["code"]["score"], found["code"]["baseline_score"]) == (0.0, 0.5)


def test_what_the_answers_are_like(tmp_path: Path) -> None:
    policy, baseline = {"a": ["I cannot help with that.", "yes yes yes yes yes yes"]}, {"a": ["one two", "three four"]}
    scores = {"a": [1.0, 1.0]}
    inputs = {
        "policy": answered(tmp_path, "policy", policy), "judged": judged(tmp_path, "judged", scores),
        "baseline.base": answered(tmp_path, "baseline", baseline),
        "baseline_judged.base": judged(tmp_path, "baseline_judged", scores),
    }  # fmt: skip
    found = evaluate(tmp_path, inputs).summary["answers"]
    assert found["policy"]["refusals"] == 0.5
    assert found["base"]["refusals"] == 0
    assert found["base"]["distinct_1"] == 1.0
    assert found["policy"]["distinct_1"] < 0.7
    assert found["policy"]["repetition"] > 0 == found["base"]["repetition"]
    assert (found["base"]["samples"], found["base"]["tokens"], found["base"]["characters"]) == (2, 2.0, 8.5)


def test_samples_stand_side_by_side_the_worst_first(tmp_path: Path) -> None:
    policy, baseline = {"a": [1.0], "b": [0.0], "c": [3.0]}, {"a": [0.0], "b": [1.0]}
    run(tmp_path, policy, baseline)
    (path,) = tmp_path.rglob("samples.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["prompt_id"] for row in rows] == ["b", "a", "c"]
    assert rows[0] == {
        "prompt_id": "b", "prompt": [{"role": "user", "content": "Question b"}], "win_rate": {"base": 0.0},
        "answers": {
            "policy": [{"text": "word 0", "tokens": 2, "score": 0.0}],
            "base": [{"text": "word 0", "tokens": 2, "score": 1.0}],
        },
    }  # fmt: skip
    assert rows[2]["win_rate"] == {}


def test_prompts_that_are_checked(tmp_path: Path) -> None:
    scores = {"a": [1.0]}
    inputs = {
        "policy": answered(tmp_path, "policy", texts(scores)), "judged": judged(tmp_path, "judged", scores),
        "baseline.base": answered(tmp_path, "baseline", texts(scores)),
        "baseline_judged.base": judged(tmp_path, "baseline_judged", scores),
        "checked": judged(tmp_path, "checked", {"x": [1.0, 0.0], "y": [1.0], "only": [1.0]}),
        "baseline_checked": judged(tmp_path, "baseline_checked", {"y": [1.0], "x": [1.0]}),
    }  # fmt: skip
    found = evaluate(tmp_path, inputs).summary["checks"]
    assert (found["score"], found["baseline_score"], found["prompts"]) == (0.75, 1.0, 2)
    assert found["change"]["mean"] == -0.25


def test_the_kl_is_the_mean_log_ratio_of_the_policys_answers(tmp_path: Path) -> None:
    """Prompt a: 2 and 1 make 1.5; prompt b: 0.5. The mean of both is 1; 2 tokens an answer: 0.5 a token."""
    scores = {"a": [1.0, 1.0], "b": [1.0]}
    inputs = {
        "policy": answered(tmp_path, "policy", texts(scores)), "judged": judged(tmp_path, "judged", scores),
        "baseline.base": answered(tmp_path, "baseline", texts(scores)),
        "baseline_judged.base": judged(tmp_path, "baseline_judged", scores),
        "log_ratios": judged(tmp_path, "ratios", {"a": [2.0, 1.0], "b": [0.5]}),
    }  # fmt: skip
    found = evaluate(tmp_path, inputs).summary["kl"]
    assert (found["mean"], found["per_token"]["mean"], found["negative"]) == (1.0, 0.5, 0.0)
    assert found["low"] <= found["mean"] <= found["high"]
