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
from stages.catalog import COMPARE, JUDGE
from stages.core.records import ROLLOUTS, Judgement, Rollout
from stages.io.artifact import Artifact
from stages.io.filenames import QUARANTINE, RECORDS, VERDICT_RECORDS
from stages.io.output import Output
from stages.io.store import Store
from stages.judge import judge as judge_stage
from stages.judge.asking import answered, rows_of
from stages.judge.config import JudgeStageConfig
from stages.judge.judges.config import JudgeConfig
from stages.judge.judges.make import make as make_judge
from stages.judge.judges.means import Means
from stages.judge.protocol import Judge, Judged, NoVerdict, Row, Verdict
from tests import artifacts


def make(**config: Any) -> Judge:
    return make_judge(
        TypeAdapter(JudgeConfig).validate_python(config), Means(Output(Store("/nowhere"), "step", "inputs"))
    )


def rollout(text: str, sample: int = 0, prompt: str = "p") -> Rollout:
    return Rollout(prompt, sample, [{"role": "user", "content": "q"}], text, len(text), "stop")


def row(*texts: str, prompt: str = "p", compares: bool = False) -> Row:
    (made,) = rows_of([rollout(text, sample, prompt) for sample, text in enumerate(texts)], compares)
    return made


def score(judge: Judge, text: str) -> Judgement:
    (judgement,) = judge(rows_of([rollout(text, 3, "x")], False))
    assert isinstance(judgement, Judgement)
    return judgement


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
    judgements = make(use="sentiment")([row(*texts)])
    good, neutral, bad = (j.score for j in judgements if isinstance(j, Judgement))
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
        "    def __call__(self, rows):\n"
        "        return [Judgement(row.prompt_id, r.sample, self.factor * len(r.text))\n"
        "                for row in reversed(rows) for r in reversed(row.responses)]\n"
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


ROWS = [row("a", "b"), row("c", prompt="q")]


def test_judgements_come_in_the_rows_order() -> None:
    said = [Judgement("q", 0, 3.0), Judgement("p", 1, 2.0), Judgement("p", 0, 1.0)]
    assert [j.score for j in answered("x", ROWS, said, False).judgements] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ([("p", 0), ("p", 1)], "prompt q: said nothing of sample 0"),
        ([("p", 1), ("q", 0)], "prompt p: said nothing of sample 0"),
        ([("p", 0), ("p", 1), ("q", 0), ("q", 1)], "prompt q: was not asked of an answer that there is not"),
        ([("p", 0), ("p", 1), ("p", 1), ("q", 0)], "prompt p: judged the same twice"),
        ([("p", 0), ("p", 1), ("r", 0)], "speaks of prompt 'r'"),
        ([], "prompt p: said nothing of sample 0; it owes a Judgement"),
    ],
)
def test_a_judge_owes_one_judgement_a_response(keys: Sequence[tuple[str, int]], why: str) -> None:
    with pytest.raises(StageError, match=f"judge x: .*{why}"):
        answered("x", ROWS, [Judgement(prompt, sample, 1.0) for prompt, sample in keys], False)


def test_a_judge_that_compares_owes_a_verdict_for_each_comparison() -> None:
    rows = [row("a", "b", "c", compares=True)]
    assert rows[0].comparisons == ((0, 1), (0, 2), (1, 2))
    said: list[Judged] = [Verdict("p", 1, 2, 1.0), Verdict("p", 0, 1, 0.5), NoVerdict("p", (0, 2), "timed out")]
    answer = answered("x", rows, said, True)
    assert [(v.first, v.second) for v in answer.verdicts] == [(0, 1), (1, 2)]
    assert [refused.places for _, refused in answer.refused] == [(0, 2)]
    with pytest.raises(StageError, match=r"said nothing of sample 0 against sample 2; it owes a Verdict"):
        answered("x", rows, said[:2], True)
    with pytest.raises(StageError, match="was not asked of sample 2 against sample 1"):
        answered("x", rows, [*said, Verdict("p", 2, 1, 1.0)], True)


@pytest.mark.parametrize("said", [[0.5], 0.5, None, [("p", 0, 1.0)]])
def test_a_judge_that_gives_something_else_is_named(said: Any) -> None:
    with pytest.raises(StageError, match=r"judge x: gave a \w+; expected a list of Judgement"):
        answered("x", ROWS, said, False)


@pytest.mark.parametrize("bad", [float("nan"), -0.1, 1.5, None, "A"])
def test_an_unknown_preference_is_no_verdict(bad: Any) -> None:
    answer = answered("x", [row("a", "b", compares=True)], [Verdict("p", 0, 1, bad, "because")], True)
    assert not answer.verdicts
    ((_, refused),) = answer.refused
    assert refused.reason == f"the verdict of judge x is {bad!r}, not a preference between 0 and 1: because"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None, "high"])
def test_an_answer_without_a_finite_score_goes_to_quarantine(
    bad: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(rows: Sequence[Row]) -> list[Judgement]:
        every = [each for row in rows for each in row.responses]
        return [Judgement(r.prompt_id, r.sample, bad if r.text == "odd" else 1.0, "timed out") for r in every]

    monkeypatch.setattr(judge_stage, "make", lambda *_: judge)
    answers = [rollout("odd" if n == 2 else "fine", n) for n in range(5)]
    made = run_stage(tmp_path, answers, use="sentiment")
    assert (made.summary["judgements"], made.summary["quarantined"]) == (4, 1)
    (quarantined,) = map(json.loads, made.path(QUARANTINE).read_text().splitlines())
    assert "prompt p sample 2" in quarantined["file"]
    assert quarantined["reason"] == f"the score of judge sentiment is {bad!r}, not a finite number: timed out"
    assert [r["sample"] for r in artifacts.rows(made, RECORDS)] == [0, 1, 3, 4]
    with pytest.raises(StageError, match=r"no verdict for 2 of 5 answers.*timed out"):
        run_stage(tmp_path / "again", [*answers[:4], rollout("odd", 4)], use="sentiment")


class Longer:
    """Prefers the longer response, and with the first shown first is a little blind: 3 of 4 characters count."""

    def __init__(self, refuses: str = "") -> None:
        self._refuses = refuses

    def __call__(self, rows: Sequence[Row]) -> list[Judged]:
        return [self._verdict(row, *places) for row in rows for places in row.comparisons]

    def _verdict(self, row: Row, first: int, second: int) -> Judged:
        one, two = (len(row.responses[place].text) for place in (first, second))
        if self._refuses and self._refuses in row.responses[first].text + row.responses[second].text:
            return NoVerdict(row.prompt_id, (first, second), "the server is down", passing=True)
        shown, swapped = float(one > 0.75 * two), float(0.75 * one > two)
        return Verdict(row.prompt_id, first, second, (shown + swapped) / 2, "", "", shown, swapped, 10, 2, 0.5, 1.5)


def test_comparisons_become_scores_and_are_kept(tmp_path: Path) -> None:
    """Lengths 8, 7, 1: 8 and 7 are a tie (each wins when shown first), both beat 1: 0.75, 0.75, 0."""
    answers = [rollout("x" * length, sample) for sample, length in enumerate((8, 7, 1))]
    made = run_stage(tmp_path, [*answers, rollout("alone", 0, "q")], use=f"{__name__}:Longer", compares=True)
    assert [r["score"] for r in artifacts.rows(made, RECORDS)] == [0.75, 0.75, 0.0, 0.5]
    verdicts = artifacts.rows(made, VERDICT_RECORDS)
    assert [(v["first"], v["second"], v["preference"]) for v in verdicts] == [(0, 1, 0.5), (0, 2, 1.0), (1, 2, 1.0)]
    assert made.summary == {
        "judgements": 4, "mean_score": 0.5, "verdicts": 3, "ties": 1,
        "position": {"asked_twice": 3, "agreed": 2, "first_place": 1, "second_place": 0},
        "input_tokens": 30, "output_tokens": 6, "cost": 1.5, "seconds": 4.5,
        "quarantined": 0, "quarantine_reasons": {},
    }  # fmt: skip


def test_an_answer_without_any_verdict_goes_to_quarantine_with_the_reason(tmp_path: Path) -> None:
    answers = [rollout("x" * length, sample) for sample, length in enumerate((8, 7, 1))]
    judge = {"use": f"{__name__}:Longer", "compares": True, "options": {"refuses": "y"}}
    made = run_stage(tmp_path, [*answers, rollout("xyx", 3)], max_bad_share=0.5, **judge)
    assert [r["sample"] for r in artifacts.rows(made, RECORDS)] == [0, 1, 2]
    assert made.summary["quarantine_reasons"] == {"score: the server is down": 3}  # its comparisons with the others
    first = json.loads(made.path(QUARANTINE).read_text().splitlines()[0])
    assert "prompt p sample 0 against sample 3" in first["file"]


def test_what_a_judge_may_know_the_next_time_is_asked_again(tmp_path: Path) -> None:
    """Two parts: the second has an answer the judge has nothing to say of now. The first is kept, the second not."""
    parts = [[rollout("x", 0), rollout("xx", 1)], [rollout("y", 0, "q"), rollout("yy", 1, "q")]]
    judge = {"use": f"{__name__}:Longer", "compares": True, "options": {"refuses": "y"}}
    with pytest.raises(StageError, match=r"no verdict for 1 of 2 comparisons.*the server is down"):
        run_stage(tmp_path, *parts, max_bad_share=0.4, **judge)
    done = [path.name for path in tmp_path.rglob("parts/*") if "rollouts" not in path.parts]
    assert len(done) == 1


def test_a_part_without_answers_is_no_trouble(tmp_path: Path) -> None:
    made = run_stage(tmp_path, [], [rollout("fine", 0)], use="rules", min_words=1)
    assert [part.rows for part in made.parts] == [0, 1]


class Stopped(Longer):
    """As it would be killed: at the answer z, once."""

    killed = False

    def __call__(self, rows: Sequence[Row]) -> list[Judged]:
        if not Stopped.killed and any(each.text == "z" for row in rows for each in row.responses):
            Stopped.killed = True
            raise KeyboardInterrupt
        self._refuses = "" if Stopped.killed else "y"
        return super().__call__(rows)


def test_what_a_killed_run_could_not_judge_is_asked_again(tmp_path: Path) -> None:
    parts = [[rollout("y", 0), rollout("x", 1)], [rollout("z", 0, "q"), rollout("zz", 1, "q")]]
    settings: dict[str, Any] = {"use": f"{__name__}:Stopped", "compares": True, "max_bad_share": 0.9}
    with pytest.raises(KeyboardInterrupt):
        run_stage(tmp_path, [*parts[0], rollout("w", 2), rollout("v", 3)], parts[1], **settings)
    made = run_stage(tmp_path, [*parts[0], rollout("w", 2), rollout("v", 3)], parts[1], **settings)
    assert (made.summary["verdicts"], made.summary["quarantined"]) == (7, 0)


def test_two_policies_are_compared_sample_by_sample(tmp_path: Path) -> None:
    """The new one's answers have 8 and 1 characters, the other's 1 and 1: a win and a tie."""
    ours = [rollout("x" * 8, 0), rollout("x", 1), rollout("x", 0, "only ours")]
    theirs = [rollout("x", 0), rollout("x", 1)]
    made = run_stage(tmp_path, ours, against=[theirs], use=f"{__name__}:Longer", compares=True)
    verdicts = artifacts.rows(made, VERDICT_RECORDS)
    assert [(v["prompt_id"], v["first"], v["second"], v["preference"]) for v in verdicts] == [
        ("p", 0, 0, 1.0), ("p", 1, 1, 0.5),
    ]  # fmt: skip
    assert made.summary["verdicts"] == 2
    assert "mean_score" not in made.summary


def run_stage(
    folder: Path, *parts: list[Rollout], against: Sequence[list[Rollout]] = (), max_bad_share: float = 0.2, **judge: Any
) -> Artifact:
    inputs = {"rollouts": sampled(folder, "rollouts", parts)}
    if against:
        inputs["against"] = sampled(folder, "against", against)
    config = JudgeStageConfig.model_validate({"judge": judge, "max_bad_share": max_bad_share})
    return artifacts.run(COMPARE if against else JUDGE, folder, config, inputs)


def sampled(folder: Path, name: str, parts: Sequence[list[Rollout]]) -> Artifact:
    rows = [[{**asdict(r), "policy": "x", "sampling": "{}"} for r in part] for part in parts]
    return artifacts.of_rows(folder, name, RECORDS, rows, ROLLOUTS)


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
