"""Agreement and biases of judges; kappa and alpha against worked examples and other implementations."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from crowdkit.metrics.data import alpha_krippendorff
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score

from stages.core.evaluation.agreement import accuracy, cohen_kappa, krippendorff_alpha
from stages.core.evaluation.biases import length_bias, position_bias

FIRST = ["yes"] * 25 + ["no"] * 25
SECOND = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15


def verdicts(seed: int, count: int = 60) -> list[int]:
    return np.random.default_rng(seed).integers(-1, 2, count).tolist()  # type: ignore[no-any-return]


def test_kappa_by_hand() -> None:
    """35 of 50 agree: 0.7. By chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5. Kappa = 0.2 / 0.5."""
    assert accuracy(FIRST, SECOND) == 0.7
    assert cohen_kappa(FIRST, SECOND) == pytest.approx(0.4)


@pytest.mark.parametrize("seed", range(3))
def test_kappa_as_scikit_learn_has_it(seed: int) -> None:
    one, two = verdicts(seed), verdicts(seed + 10)
    assert cohen_kappa(one, two) == pytest.approx(cohen_kappa_score(one, two))
    assert cohen_kappa(one, two, "linear") == pytest.approx(cohen_kappa_score(one, two, weights="linear"))
    assert cohen_kappa(one, two, "quadratic") == pytest.approx(cohen_kappa_score(one, two, weights="quadratic"))


def test_a_tie_against_a_win_is_half_as_wrong_as_the_opposite() -> None:
    near, far = [1, -1, 1, -1, 0, 1], [1, -1, 1, -1, 0, -1]
    truth = [1, -1, 1, -1, 0, 0]
    assert cohen_kappa(near, truth, "linear") > cohen_kappa(near, truth)
    assert cohen_kappa(far, [1, -1, 1, -1, 0, 1], "linear") < cohen_kappa(near, truth, "linear")


def test_perfect_opposite_and_undefined_kappa() -> None:
    assert cohen_kappa([1, -1, 0], [1, -1, 0]) == 1
    assert cohen_kappa([1, -1], [-1, 1]) == -1
    assert math.isnan(cohen_kappa([1, 1], [1, 1]))


# The worked example of Krippendorff 2011: 4 observers, 12 units, labels 1 to 5.
N = None
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
    [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
]


def test_alpha_of_the_worked_example() -> None:
    assert krippendorff_alpha(OBSERVERS) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(OBSERVERS, "quadratic") == pytest.approx(0.849, abs=5e-4)


@pytest.mark.parametrize("seed", range(3))
def test_alpha_as_crowd_kit_has_it(seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows = [[None if generator.random() < 0.2 else int(x) for x in verdicts(seed + 20 + n, 30)] for n in range(4)]
    answers = [
        {"task": item, "worker": judge, "label": label}
        for judge, row in enumerate(rows)
        for item, label in enumerate(row)
        if label is not None
    ]
    assert krippendorff_alpha(rows) == pytest.approx(alpha_krippendorff(pd.DataFrame(answers)))


def test_alpha_that_does_not_exist() -> None:
    assert math.isnan(krippendorff_alpha([]))
    assert math.isnan(krippendorff_alpha([[None, None]]))
    assert math.isnan(krippendorff_alpha([[1, None], [None, 0]]))
    assert math.isnan(krippendorff_alpha([["a", "a"], ["a", "a"]]))


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="same items"):
        accuracy([1], [1, 2])
    with pytest.raises(ValueError, match="same items"):
        cohen_kappa([], [])
    with pytest.raises(ValueError, match="same items"):
        krippendorff_alpha([[1], [1, 2]])
    with pytest.raises(ValueError, match="numbers"):
        cohen_kappa(["a", "b"], ["b", "a"], "linear")


def test_position_bias_by_hand() -> None:
    """Unbiased; first both times; second both times; a tie that becomes a win of the first; ties. Three of five change.
    Of seven decided verdicts first has 1 + 2 + 0 + 1."""
    found = position_bias([1, 1, -1, 0, 0], [-1, 1, -1, 1, 0], resamples=50)
    assert found.changed.mean == 0.6
    assert found.first.mean == pytest.approx(4 / 7)


def test_a_judge_of_places_and_one_of_answers() -> None:
    always = position_bias([1] * 5, [1] * 5)
    assert (always.changed.mean, always.first.mean, always.first.low) == (1, 1, 1)
    fair = position_bias(verdicts(0), [-v for v in verdicts(0)])
    assert (fair.changed.mean, fair.first.mean) == (0, 0.5)
    assert math.isnan(position_bias([0], [0]).first.mean)


def test_length_bias_by_hand() -> None:
    """The third is a tie and the fourth has equal lengths: of the other three the judge calls two for the longer."""
    found = length_bias([1, -1, 0, 1, 1], [10, -5, 7, 0, -3], people=[1, 1, 0, 1, 1], resamples=50)
    assert found.longer.mean == pytest.approx(2 / 3)
    assert found.people is not None
    assert found.people.mean == pytest.approx(1 / 3)


def test_the_correlation_is_spearmans() -> None:
    said, apart = verdicts(3), np.random.default_rng(4).integers(-9, 9, 60)
    assert length_bias(said, apart).correlation == pytest.approx(spearmanr(said, apart).statistic)
    assert math.isnan(length_bias([1, 1], [1.0, 2.0]).correlation)
    assert length_bias([1, 0, -1], [9.0, 1.0, -2.0]).people is None


@pytest.mark.parametrize("bad", [[2], [0.5], []])
def test_what_is_no_verdict_is_refused(bad: list[int]) -> None:
    with pytest.raises(ValueError, match="a verdict is"):
        position_bias(bad, bad)
    with pytest.raises(ValueError, match="a verdict is"):
        length_bias(bad, [1.0] * len(bad))


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="same comparisons"):
        position_bias([1], [1, 0])
    with pytest.raises(ValueError, match="every comparison"):
        length_bias([1], [1.0, 2.0])
    with pytest.raises(ValueError, match="every comparison"):
        length_bias([1], [1.0], people=[1, 1])
    with pytest.raises(ValueError, match="finite"):
        length_bias([1], [float("nan")])


def test_an_item_may_stand_for_several() -> None:
    items = [(1, 1, 0), (1, 0, None), (0, 0, 0), (1, None, None)]
    times = [3, 2, 4, 5]
    every = [item for item, count in zip(items, times, strict=True) for _ in range(count)]
    plain = krippendorff_alpha(list(zip(*every, strict=True)), "linear")
    assert krippendorff_alpha(list(zip(*items, strict=True)), "linear", times) == pytest.approx(plain)
    assert plain != pytest.approx(krippendorff_alpha(list(zip(*items, strict=True)), "linear"))
