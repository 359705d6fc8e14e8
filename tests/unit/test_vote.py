from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from stages.base import StageError
from stages.catalog import PAIR, VOTE
from stages.core.records import JUDGEMENTS, VERDICTS
from stages.io.artifact import Artifact
from stages.io.filenames import RECORDS, VERDICT_RECORDS
from stages.judge.config import PairConfig, SoftConfig, VoteConfig
from stages.judge.pairing import match
from stages.judge.protocol import Judgement, Verdict
from tests import artifacts
from tests.unit.test_judges import rollout, sampled

Scores = Mapping[str, Sequence[float | None]]


def scored(folder: Path, name: str, *parts: Scores) -> Artifact:
    """A judge's scores; None where it had none."""
    rows = [
        [asdict(Judgement(prompt, n, score)) for prompt, scores in part.items() for n, score in enumerate(scores)
         if score is not None]
        for part in parts
    ]  # fmt: skip
    return artifacts.of_rows(folder, name, RECORDS, rows, JUDGEMENTS)


def compared(folder: Path, name: str, *parts: Sequence[tuple[str, int, int, float]]) -> Artifact:
    rows = [[asdict(Verdict(*each)) for each in part] for part in parts]
    return artifacts.of_rows(folder, name, VERDICT_RECORDS, rows, VERDICTS)


def vote(folder: Path, margin: float = 0.0, **judges: Artifact) -> Artifact:
    inputs = {name.replace("_", "."): each for name, each in judges.items()}
    return artifacts.run(VOTE, folder, VoteConfig(margin=margin), inputs)


def verdicts(made: Artifact) -> dict[tuple[str, int, int], float]:
    return {(r["prompt_id"], r["first"], r["second"]): r["preference"] for r in artifacts.rows(made, VERDICT_RECORDS)}


def test_shares_of_votes_become_preferences_and_scores(tmp_path: Path) -> None:
    """Answers 0, 1, 2. The first judge: 0 > 1 > 2. The second: 0 = 1 > 2. The third compares: 1 > 0, 0 > 2, 2 > 1.
    0 over 1: (1 + 0.5 + 0) / 3 = 0.5; 0 over 2: 1; 1 over 2: 2/3. Scores 0.75, (0.5 + 2/3) / 2, (0 + 1/3) / 2."""
    made = vote(
        tmp_path,
        judged_0=scored(tmp_path, "a", {"p": [3.0, 2.0, 1.0]}),
        judged_1=scored(tmp_path, "b", {"p": [0.5, 0.5, 0.25]}),
        judged_2=compared(tmp_path, "c", [("p", 0, 1, 0.0), ("p", 0, 2, 0.75), ("p", 1, 2, 0.25)]),
    )
    assert verdicts(made) == {
        ("p", 0, 1): 0.5, ("p", 0, 2): 1.0, ("p", 1, 2): pytest.approx(2 / 3),
    }  # fmt: skip
    assert [r["score"] for r in artifacts.rows(made, RECORDS)] == pytest.approx([0.75, 7 / 12, 1 / 6])
    assert (made.summary["judgements"], made.summary["verdicts"]) == (3, 3)
    assert made.summary["agreement_of_two"] == {"0, 1": pytest.approx(2 / 3), "0, 2": pytest.approx(1 / 3),
                                                "1, 2": pytest.approx(1 / 3)}  # fmt: skip


def test_differences_within_the_margin_are_ties(tmp_path: Path) -> None:
    made = vote(tmp_path, 0.25, judged_0=scored(tmp_path, "a", {"p": [1.0, 1.25, 2.0]}))
    assert verdicts(made) == {("p", 0, 1): 0.5, ("p", 0, 2): 0.0, ("p", 1, 2): 0.0}


def test_a_judge_that_is_silent_leaves_the_vote_to_the_others(tmp_path: Path) -> None:
    made = vote(
        tmp_path, judged_0=scored(tmp_path, "a", {"p": [1.0, None]}, {}),
        judged_1=scored(tmp_path, "b", {"p": [0.0, 1.0]}, {"q": [1.0, 0.0]}),
    )  # fmt: skip
    assert verdicts(made) == {("p", 0, 1): 0.0, ("q", 0, 1): 1.0}
    assert [part.name for part in made.parts] == ["00000", "00001"]
    assert made.summary["agreement"] is None


def test_agreement_is_krippendorffs(tmp_path: Path) -> None:
    same = [{"p": [1.0, 0.0], "q": [0.0, 1.0]}, {"p": [5.0, 3.0], "q": [0.0, 9.0]}]
    made = vote(tmp_path, **{f"judged_{n}": scored(tmp_path, f"j{n}", each) for n, each in enumerate(same)})
    assert made.summary["agreement"] == pytest.approx(1.0)
    other = [same[0], {"p": [3.0, 5.0], "q": [9.0, 0.0]}]
    folder = tmp_path / "other"
    made = vote(folder, **{f"judged_{n}": scored(folder, f"j{n}", each) for n, each in enumerate(other)})
    assert made.summary["agreement"] < 0


def test_judges_that_are_of_one_mind_agree_whoever_wins(tmp_path: Path) -> None:
    """One side wins all but once: by chance they would agree as often, were the pairs not turned round."""
    ours = {f"p{n}": [1.0] for n in range(40)}
    theirs = {f"p{n}": [0.0] for n in range(40)}
    other = {**ours, "p0": [-1.0]}
    votes = {"judged_0": ours, "against_0": theirs, "judged_1": other, "against_1": theirs}
    made = vote(tmp_path, **{name: scored(tmp_path, name, scores) for name, scores in votes.items()})
    assert made.summary["agreement"] > 0.9
    same = {"judged_0": {"p": [1.0]}, "against_0": {"p": [0.0]}, "judged_1": {"p": [2.0]}, "against_1": {"p": [0.0]}}
    folder = tmp_path / "same"
    made = vote(folder, **{name: scored(folder, name, scores) for name, scores in same.items()})
    assert made.summary["agreement"] == 1.0


def test_a_pair_needs_the_votes_of_half_the_judges(tmp_path: Path) -> None:
    known = [{"p": [1.0, None if n == 0 else 0.0], "q": [1.0, 0.0 if n == 0 else None]} for n in range(3)]
    judges = {f"judged_{n}": scored(tmp_path, f"judge {n}", each) for n, each in enumerate(known)}
    assert verdicts(vote(tmp_path, **judges)) == {("p", 0, 1): 1.0}


def test_the_answers_of_two_policies(tmp_path: Path) -> None:
    """Sample by sample: the first judge's scores say 1 and 0, the second compares and says a tie and 1."""
    made = vote(
        tmp_path, judged_0=scored(tmp_path, "a", {"p": [2.0, 0.0], "only ours": [1.0]}),
        against_0=scored(tmp_path, "b", {"p": [1.0, 1.0]}),
        verdicts_1=compared(tmp_path, "c", [("p", 0, 0, 0.5), ("p", 1, 1, 1.0)]),
    )  # fmt: skip
    assert verdicts(made) == {("p", 0, 0): 0.75, ("p", 1, 1): 0.5}
    assert not made.has(RECORDS)
    assert "mean_score" not in made.summary


def test_no_vote_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no two answers to a prompt have a vote"):
        vote(tmp_path, judged_0=scored(tmp_path, "a", {"p": [1.0]}))


def test_votes_become_the_probabilities_of_pairs() -> None:
    answers = [(rollout("good", 0), 0.9), (rollout("fair", 1), 0.6), (rollout("bad", 2), 0.1)]
    said = {(0, 1): 0.4, (0, 2): 1.0, (1, 2): 0.75}
    config = PairConfig(strategy="all", soft=SoftConfig(votes=True))
    pairs = {(m.chosen.sample, m.rejected.sample): m.probability for m in match(answers, config, said).pairs}
    assert pairs == {(0, 2): 1.0, (1, 2): 0.75}  # 0 has the higher score, and the majority prefers 1: no pair
    turned = {(1, 0): 0.25, (2, 0): 0.0}
    pairs = {(m.chosen.sample, m.rejected.sample): m.probability for m in match(answers, config, turned).pairs}
    assert pairs == {(0, 1): 0.75, (0, 2): 1.0}  # nothing was said of 1 and 2


@pytest.mark.parametrize("soft", [{}, {"temperature": 1.0, "votes": True}])
def test_soft_labels_come_one_way(soft: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="expected either a temperature or votes: true"):
        SoftConfig(**soft)


def test_the_pair_stage_takes_the_votes_of_the_judgements(tmp_path: Path) -> None:
    """Part by part: prompt q stands in the second one."""
    parts = [[rollout("good", 0), rollout("bad", 1)], [rollout("fine", 0, "q"), rollout("poor", 1, "q")]]
    first = scored(tmp_path, "a", {"p": [1.0, 0.0]}, {"q": [0.0, 1.0]})
    second = scored(tmp_path, "b", {"p": [1.0, 0.0]}, {"q": [1.0, 1.0]})
    voted = vote(tmp_path, judged_0=first, judged_1=second)
    inputs = {"rollouts": sampled(tmp_path, "rollouts", parts), "judgements": voted}
    made = artifacts.run(PAIR, tmp_path, PairConfig(soft=SoftConfig(votes=True)), inputs)
    rows = artifacts.rows(made, RECORDS)
    assert [(row["chosen"][0]["content"], row["probability"]) for row in rows] == [("good", 1.0), ("poor", 0.75)]
