from __future__ import annotations

import numpy as np
import pytest

from stages.core.evaluation.comparisons import shares


def test_shares_by_hand() -> None:
    """Prompt a: 2 beats 1, 2 ties with 2, 0 loses twice. Prompt b: three wins."""
    found = shares({"b": [1.0], "a": [2.0, 0.0]}, {"a": [1.0, 2.0], "b": [0.0, 0.0, 0.0]})
    assert found.prompts == ("a", "b")
    assert (found.wins.tolist(), found.ties.tolist(), found.losses.tolist()) == ([0.25, 1], [0.25, 0], [0.5, 0])
    assert found.win_rates.tolist() == [0.375, 1.0]
    assert found.means == {"wins": 0.625, "ties": 0.125, "losses": 0.25}


def test_shares_add_up_and_turn_around() -> None:
    generator = np.random.default_rng(0)
    ours = {f"{i}": generator.integers(0, 3, 4).tolist() for i in range(20)}
    theirs = {f"{i}": generator.integers(0, 3, 3).tolist() for i in range(20)}
    found = shares(ours, theirs)
    assert (found.wins + found.ties + found.losses).tolist() == pytest.approx([1.0] * 20)
    back = shares(theirs, ours)
    assert (found.win_rates + back.win_rates).tolist() == pytest.approx([1.0] * 20)
    assert (back.wins.tolist(), back.ties.tolist()) == (found.losses.tolist(), found.ties.tolist())


def test_scores_within_the_tolerance_tie() -> None:
    found = shares({"a": [0.75, 1.25, 1.5, 0.5]}, {"a": [1.0]}, tolerance=0.25)
    assert (found.wins.tolist(), found.ties.tolist(), found.losses.tolist()) == ([0.25], [0.5], [0.25])


def test_infinite_scores_are_in_order() -> None:
    found = shares({"a": [float("inf"), float("-inf")]}, {"a": [float("inf")]})
    assert (found.wins.tolist(), found.ties.tolist(), found.losses.tolist()) == ([0.0], [0.5], [0.5])


@pytest.mark.parametrize(
    ("ours", "theirs", "tolerance", "message"),
    [
        ({}, {}, 0.0, "same prompts"),
        ({"a": [1.0]}, {"b": [1.0]}, 0.0, "same prompts"),
        ({"a": []}, {"a": [1.0]}, 0.0, "no samples"),
        ({"a": [1.0]}, {"a": [float("nan")]}, 0.0, "not a number"),
        ({"a": [1.0]}, {"a": [1.0]}, -0.1, "at least 0"),
        ({"a": [1.0]}, {"a": [1.0]}, float("nan"), "at least 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    ours: dict[str, list[float]], theirs: dict[str, list[float]], tolerance: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        shares(ours, theirs, tolerance)
