from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from stages.base import StageError
from stages.catalog import JUDGE
from stages.core.records import ROLLOUTS, Judgement, Rollout
from stages.io.artifact import Artifact
from stages.io.filenames import QUARANTINE, RECORDS
from stages.judge import builtin
from stages.judge import judge as judge_stage
from stages.judge.config import JudgeConfig, JudgeStageConfig
from stages.judge.judge import in_order
from tests import artifacts


def make(**config: Any) -> builtin.Judge:
    return builtin.make(TypeAdapter(JudgeConfig).validate_python(config))


def rollout(text: str, sample: int = 0, prompt: str = "p") -> Rollout:
    return Rollout(prompt, sample, [{"role": "user", "content": "q"}], text, len(text), "stop")


def score(judge: builtin.Judge, text: str) -> Judgement:
    return judge([rollout(text, 3, "x")])[0]


@pytest.mark.parametrize(
    ("rules", "text", "expected", "reason"),
    [
        ({"min_words": 3}, "one two three", 1.0, ""),
        ({"min_words": 3}, "one two", 0.0, "min_words"),
        ({"max_words": 3}, "one two three", 1.0, ""),
        ({"max_words": 3}, "one two three four", 0.0, "max_words"),
        ({"must_contain": ["Blue", "RED"]}, "a blue sky", 0.5, "must_contain 'RED'"),
        ({"must_not_contain": ["sorry"]}, "I am Sorry.", 0.0, "must_not_contain 'sorry'"),
        ({"must_not_contain": ["sorry"]}, "Here you are.", 1.0, ""),
        ({"pattern": r"\d+%"}, "about 40% of it", 1.0, ""),
        ({"pattern": r"^\d+%"}, "about 40% of it", 0.0, "pattern"),
        ({"pattern": r"blue"}, "Blue", 0.0, "pattern"),
        ({}, "anything", 1.0, ""),
        ({"min_words": 1, "must_contain": ["x"]}, "", 0.0, "min_words, must_contain 'x'"),
    ],
)
def test_rules_score_the_share_that_is_kept(rules: dict[str, Any], text: str, expected: float, reason: str) -> None:
    assert score(make(use="rules", **rules), text) == Judgement("x", 3, expected, reason)


def test_five_rules_by_hand() -> None:
    """Kept: max_words, must_contain "sky". Broken: min_words, must_not_contain "no", pattern. 2 of 5."""
    judge = make(use="rules", min_words=5, max_words=9, must_contain=["sky"], must_not_contain=["no"], pattern="[0-9]")
    judgement = score(judge, "No sky here")
    assert judgement.score == pytest.approx(0.4)
    assert judgement.reason == "min_words, must_not_contain 'no', pattern"


def test_sentiment_orders_positive_neutral_negative() -> None:
    texts = ["What a wonderful, happy day!", "The table has four legs.", "This is a terrible, awful mess."]
    judgements = make(use="sentiment")([rollout(text, sample) for sample, text in enumerate(texts)])
    assert [j.sample for j in judgements] == [0, 1, 2]
    good, neutral, bad = (j.score for j in judgements)
    assert 0.3 < good <= 1
    assert neutral == 0
    assert -1 <= bad < -0.3
    assert score(make(use="sentiment"), "").score == 0


@pytest.fixture
def own_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's module with a judge that scores by length."""
    (tmp_path / "a_users_judge.py").write_text(
        "from stages.core.records import Judgement\n"
        "class Length:\n"
        "    def __init__(self, factor=1.0):\n"
        "        self.factor = factor\n"
        "    def __call__(self, rollouts):\n"
        "        return [Judgement(r.prompt_id, r.sample, self.factor * len(r.text)) for r in reversed(rollouts)]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "a_users_judge", raising=False)
    return "a_users_judge:Length"


def test_a_users_own_judge_gets_its_options(own_judge: str) -> None:
    assert score(make(use=own_judge, options={"factor": -0.5}), "four").score == -2
    assert score(make(use=own_judge), "four").score == 4


def test_a_judge_that_does_not_exist_is_an_import_error(own_judge: str) -> None:
    with pytest.raises(ImportError, match="has no 'Width'"):
        make(use=own_judge.replace("Length", "Width"))
    with pytest.raises(ImportError):
        make(use="no_such_module_anywhere:Judge")


@pytest.mark.parametrize("use", ["sentimental", "", 3, None])
def test_an_unknown_judge_names_the_valid_ones(use: Any) -> None:
    with pytest.raises(ValidationError, match=r"unknown judge; valid: use: sentiment, use: rules, .*module:Class"):
        make(use=use)


def test_a_pattern_has_to_be_a_regular_expression() -> None:
    with pytest.raises(ValidationError, match="not a regular expression"):
        make(use="rules", pattern="(")


THREE_ROLLOUTS = [rollout("a", 0), rollout("b", 1), rollout("c", 0, "q")]


def test_judgements_come_in_the_rollouts_order() -> None:
    judgements = [Judgement("q", 0, 3.0), Judgement("p", 1, 2.0), Judgement("p", 0, 1.0)]
    assert [j.score for j in in_order(THREE_ROLLOUTS, judgements)] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param([("p", 0), ("p", 1)], id="one is missing"),
        pytest.param([("p", 0), ("p", 1), ("q", 0), ("q", 1)], id="one too many"),
        pytest.param([("p", 0), ("p", 1), ("p", 1)], id="one twice"),
        pytest.param([("p", 0), ("p", 1), ("q", 0), ("q", 0)], id="all and one twice"),
        pytest.param([("p", 0), ("p", 1), ("r", 0)], id="another prompt"),
        pytest.param([], id="nothing"),
    ],
)
def test_a_judge_owes_one_judgement_a_rollout(keys: Sequence[tuple[str, int]]) -> None:
    with pytest.raises(StageError, match=f"{len(keys)} judgements for 3 rollouts"):
        in_order(THREE_ROLLOUTS, [Judgement(prompt, sample, 1.0) for prompt, sample in keys])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None, "high"])
def test_an_answer_without_a_finite_score_goes_to_quarantine(
    bad: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(rollouts: Sequence[Rollout]) -> list[Judgement]:
        return [Judgement(r.prompt_id, r.sample, bad if r.text == "odd" else 1.0, "timed out") for r in rollouts]

    monkeypatch.setattr(judge_stage.builtin, "make", lambda config: judge)
    answers = [rollout("odd" if n == 2 else "fine", n) for n in range(5)]
    made = run_stage(tmp_path, answers, use="sentiment")
    assert (made.summary["judgements"], made.summary["quarantined"]) == (4, 1)
    (row,) = map(json.loads, made.path(QUARANTINE).read_text().splitlines())
    assert "prompt p sample 2" in row["file"]
    assert row["reason"] == f"the judge's score is {bad!r}, not a finite number: timed out"
    assert [r["sample"] for r in artifacts.rows(made, RECORDS)] == [0, 1, 3, 4]
    with pytest.raises(StageError, match=r"no score for 2 of 5 answers.*timed out"):
        run_stage(tmp_path / "again", [*answers[:4], rollout("odd", 4)], use="sentiment")


def run_stage(folder: Path, *parts: list[Rollout], **judge: Any) -> Artifact:
    rows = [[{**asdict(r), "policy": "x", "sampling": "{}"} for r in part] for part in parts]
    rollouts = artifacts.of_rows(folder, "rollouts", RECORDS, rows, ROLLOUTS)
    return artifacts.run(JUDGE, folder, JudgeStageConfig.model_validate({"judge": judge}), {"rollouts": rollouts})


def test_the_stage_writes_judgements_in_order_and_their_mean(tmp_path: Path, own_judge: str) -> None:
    """40 prompts with two samples each of 1 to 80 characters: the mean is 40.5."""
    rollouts = [rollout("x" * (2 * p + n + 1), n, f"{p}") for p in range(40) for n in range(2)]
    made = run_stage(tmp_path, rollouts[:50], rollouts[50:], use=own_judge)
    assert made.summary == {
        "judgements": 80, "mean_score": 40.5, "quarantined": 0, "quarantine_reasons": {},
    }  # fmt: skip
    assert [part.rows for part in made.parts] == [50, 30]
    assert not made.has(QUARANTINE)
    assert [(r["prompt_id"], r["sample"], r["score"]) for r in artifacts.rows(made, RECORDS)] == [
        (r.prompt_id, r.sample, float(len(r.text))) for r in rollouts
    ]
