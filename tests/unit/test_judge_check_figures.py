"""How a judge agrees with people: the arithmetic, by hand."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from stages.core.records import PreferencePair, Vote
from stages.judge.check.config import LabelledConfig
from stages.judge.check.figures import Bootstrap, Item, figures, joined
from stages.judge.check.labelled import choose, swapped, texts

FEW = Bootstrap(resamples=50)


def items(*pairs: tuple[float, float | None]) -> list[Item]:
    return [Item(f"p{number}", people, judge=judge) for number, (people, judge) in enumerate(pairs)]


def mean(found: Any) -> float:
    value: float = found["mean"]
    return value


def test_accuracy_with_and_without_ties_by_hand() -> None:
    """Right, right, wrong, a tie where people choose, a choice where people tie, a tie of both, and one unjudged."""
    found = figures(items((1, 1), (0.9, 0.8), (1, 0), (0, 0.5), (0.5, 1), (0.5, 0.5), (1, None)), FEW)
    assert (found["pairs"], found["judged"], found["unjudged"]) == (7, 6, 1)
    assert found["ties"] == {"people": 2, "judge": 2, "both": 1}
    accuracy = found["accuracy"]
    assert mean(accuracy["with_ties"]) == pytest.approx(3 / 6)
    assert (mean(accuracy["without_ties"]), accuracy["without_ties"]["pairs"]) == (pytest.approx(2 / 3), 3)
    assert (mean(accuracy["half_ties"]), accuracy["half_ties"]["pairs"]) == (pytest.approx(2.5 / 4), 4)


def test_kappa_by_hand() -> None:
    """Two of four agree; both say 1 of half of them: chance is one half, and so kappa 0."""
    assert figures(items((1, 1), (1, 0), (0, 1), (0, 0)), FEW)["kappa"] == pytest.approx(0)
    assert figures(items((1, 1), (0, 0)), FEW)["kappa"] == pytest.approx(1)
    assert figures(items((1, 1), (1, 1)), FEW)["kappa"] is None


def test_intervals_take_a_prompt_with_all_its_pairs() -> None:
    """Ten pairs on one prompt are one thing that was seen: no resample differs."""
    same = [Item("p", 1, judge=judge) for judge in (1, 0) * 5]
    found = figures(same, FEW)["accuracy"]["with_ties"]
    assert found["low"] == found["mean"] == found["high"] == 0.5
    apart = figures(items(*[(1, 1), (1, 0)] * 5), FEW)["accuracy"]["with_ties"]
    assert apart["low"] < 0.5 < apart["high"]


def test_what_people_say_to_each_other_and_the_judge_to_one_of_them() -> None:
    """Votes 1, 1, 0: one of three couples agrees, and two of three agree with a judge that says 1; votes 1, 1: all."""
    asked = [Item("a", 2 / 3, (1, 1, 0), 1), Item("b", 1, (1, 1), 1), Item("c", 1, (1,), 0)]
    people = figures(asked, FEW)["people"]
    assert mean(people["agreement"]) == pytest.approx((1 / 3 + 1) / 2)
    assert mean(people["judge"]) == pytest.approx((2 / 3 + 1) / 2)
    assert people["agreement"]["pairs"] == 2
    assert people["alpha"] == pytest.approx(
        1 - 4 * 2 / 8
    )  # o = 2 of units worth 5 labels, expected 4 * 1 * 2 / (5 * 4)
    assert figures(items((1, 1)), FEW)["people"] is None


def test_a_judge_that_always_takes_the_first_place() -> None:
    """It prefers the first when that is shown first, and the second when that is."""
    asked = [Item(f"p{n}", 1, judge=0.5, shown=1.0, swapped=0.0) for n in range(4)]
    position = figures(asked, FEW)["position"]
    assert (mean(position["changed"]), mean(position["first"]), position["pairs"]) == (1, 1, 4)
    steady = [Item(f"p{n}", 1, judge=1, shown=1.0, swapped=1.0) for n in range(4)]
    position = figures(steady, FEW)["position"]
    assert (mean(position["changed"]), mean(position["first"])) == (0, 0.5)
    assert figures(items((1, 1)), FEW)["position"] is None


def test_the_longer_answer() -> None:
    asked = [Item("a", 0, judge=1, longer=5), Item("b", 1, judge=1, longer=9), Item("c", 1, judge=0, longer=-2)]
    length = figures(asked, FEW)["length"]
    assert mean(length["longer"]) == 1
    assert mean(length["people"]) == pytest.approx(1 / 3)


def test_a_judge_that_says_nothing_has_no_figures_but_counts() -> None:
    found = figures(items((1, None), (0, None)), FEW)
    assert found["unjudged"] == 2
    assert found["accuracy"] is found["kappa"] is found["position"] is found["length"] is None
    with pytest.raises(ValueError, match="nothing"):
        figures([])


def test_scores_and_verdicts_become_preferences() -> None:
    label = {"prompt_key": "k", "preference": 1.0, "votes": [1.0]}
    labels = [{**label, "prompt_id": name} for name in "abc"]
    answers = [{"prompt_id": name, "sample": n, "text": "x" * (1 + n)} for name in "abc" for n in (0, 1)]
    scores = [("a", 0, 2.0), ("a", 1, 1.0), ("b", 0, 1.0), ("b", 1, 1.0), ("c", 0, 1.0)]
    judgements = [{"prompt_id": name, "sample": n, "score": score} for name, n, score in scores]
    found = list(joined(labels, answers, [], judgements))
    assert [item.judge for item in found] == [1.0, 0.5, None]
    assert found[0].longer == -1
    verdict = {"prompt_id": "b", "preference": 0.0, "shown": None, "swapped": 0.0}
    found = list(joined(labels, answers, [verdict], judgements))
    assert [(item.judge, item.swapped) for item in found] == [(None, None), (0.0, 0.0), (None, None)]


def pair(number: int, chosen: str = "good", rejected: str = "bad", **more: Any) -> PreferencePair:
    asked = ({"role": "user", "content": f"question {number}"},)
    sides = [({"role": "assistant", "content": text},) if text else () for text in (chosen, rejected)]
    return PreferencePair(asked, sides[0], sides[1], **more)  # type: ignore[arg-type]


def chosen(pairs: list[PreferencePair], **config: Any) -> tuple[list[tuple[str, PreferencePair]], int, Counter[str]]:
    left_out: Counter[str] = Counter()
    return *choose(pairs, LabelledConfig(**config), left_out), left_out


def test_the_order_does_not_tell_which_answer_people_prefer() -> None:
    turned = [swapped(pair(number)) for number in range(200)]
    assert 70 < sum(turned) < 130
    assert turned == [not swapped(pair(number, "bad", "good")) for number in range(200)]


def test_a_limit_takes_the_same_pairs_in_whatever_order_they_come() -> None:
    pairs = [pair(number) for number in range(50)]
    few, _, _ = chosen(pairs, limit=7)
    assert len(few) == 7
    assert few == chosen(pairs[::-1], limit=7)[0]
    assert few != chosen(pairs, limit=7, seed=1)[0]
    assert {name for name, _ in few} < {name for name, _ in chosen(pairs, limit=9)[0]}
    assert len(chosen(pairs)[0]) == 50


def test_a_pair_counts_once_and_what_is_no_pair_is_left_out() -> None:
    calls = {"role": "assistant", "content": "x", "extra": '{"tool_calls": []}'}
    more = PreferencePair(pair(1).prompt, (calls,), pair(1).rejected)  # type: ignore[arg-type]
    kept, repeated, left_out = chosen([pair(1), pair(1, "bad", "good"), pair(2, "same", "same"), pair(3, ""), more])
    assert [texts(each) for _, each in kept] == [("good", "bad")]
    assert repeated == 1
    assert left_out == {
        "the same answer twice": 1, "a single answer": 1, "an answer that is more than a text": 1,
    }  # fmt: skip


def test_votes_are_for_the_first_answer_whichever_that_is() -> None:
    from stages.judge.check.labelled import _label

    votes = (
        Vote(annotator="a", preference=1),
        Vote(annotator="b", preference=0.5),
        Vote(annotator="c", preference=None),
    )
    both = {swapped(each): _label("n", each) for each in (pair(number, votes=votes) for number in range(20))}
    assert (both[False]["preference"], both[False]["votes"]) == (0.75, [1, 0.5])
    assert (both[True]["preference"], both[True]["votes"]) == (0.25, [0, 0.5])
    assert _label("n", pair(1, probability=0.7))["preference"] in (pytest.approx(0.7), pytest.approx(0.3))
