"""The bootstrap over prompts: means, paired differences, ratios and other statistics."""

from __future__ import annotations

import numpy as np
import pytest

from stages.core import bootstrap as module
from stages.core.bootstrap import Interval, bootstrap, counts, draws, paired_difference, percentile, ratio, statistic

DATA = np.random.default_rng(1).random(30)


def one_by_one(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """The plain bootstrap of means: a resample after the other."""
    generator = np.random.default_rng(seed)
    return np.array([values[generator.integers(0, len(values), len(values))].mean() for _ in range(resamples)])


@pytest.mark.parametrize("count", [1, 2, 7, 30, 805])
def test_chunks_draw_what_one_resample_after_the_other_draws(count: int) -> None:
    values = np.random.default_rng(count).random(count)
    low, high = np.quantile(one_by_one(values, 3000, 5), [(1 - 0.9) / 2, 1 - (1 - 0.9) / 2])
    assert bootstrap(values, 3000, 0.9, seed=5) == Interval(float(values.mean()), float(low), float(high))


def test_the_size_of_a_chunk_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bootstrap(DATA, 100, 0.95, seed=3)
    monkeypatch.setattr(module, "_CHUNK", 31)  # a resample at a time
    assert [len(drawn) for drawn in draws(30, 3, 0)] == [1, 1, 1]
    assert bootstrap(DATA, 100, 0.95, seed=3) == whole


def test_counts_say_how_often_a_prompt_was_drawn() -> None:
    assert counts(np.array([[0, 0, 2], [1, 1, 1]])).tolist() == [[2, 0, 1], [0, 3, 0]]


def test_a_statistic_that_is_the_mean_has_the_interval_of_the_mean() -> None:
    found = statistic(lambda weights: weights @ DATA / weights.sum(axis=1), 30, 500, 0.95, seed=2)
    wanted = bootstrap(DATA, 500, 0.95, seed=2)
    assert (found.mean, found.low, found.high) == pytest.approx((wanted.mean, wanted.low, wanted.high))


def test_a_paired_difference_is_narrower_than_unpaired_sides() -> None:
    """The sides share what is hard about a prompt (variance 1) and differ by noise of 0.1: an interval of about
    2 * 1.96 * 0.1 * sqrt(2) / 20 around 0.05."""
    generator = np.random.default_rng(0)
    shared = generator.normal(size=400)
    one, two = (shared + shift + 0.1 * generator.normal(size=400) for shift in (0.05, 0.0))
    found = paired_difference(one, two, 2000, 0.95, seed=0)
    assert found.mean == pytest.approx(0.05, abs=0.02)
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.1 * np.sqrt(2) / 20, rel=0.15)
    assert found.low > 0
    assert paired_difference(two, one, 2000, 0.95, seed=0).mean == pytest.approx(-found.mean)


def test_a_ratio_by_hand_and_with_prompts_without_a_denominator() -> None:
    assert ratio([1.0, 2.0, 0.0], [2.0, 2.0, 0.0], 50, 0.95, seed=0).mean == 0.75
    found = ratio([1.0, 0.0], [1.0, 0.0], 50, 0.95, seed=0)  # half of the resamples have a denominator of 0
    assert (found.mean, found.low, found.high) == (1.0, 1.0, 1.0)


def test_a_statistic_that_exists_nowhere_has_no_interval() -> None:
    found = ratio([0.0, 0.0], [0.0, 0.0], 10, 0.95, seed=0)
    assert np.isnan([found.mean, found.low, found.high]).all()
    assert percentile(1.0, np.array([np.nan, 2.0, 4.0]), 0.5) == Interval(1.0, 2.5, 3.5)


def test_what_cannot_be_resampled_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one prompt"):
        bootstrap([], 10, 0.95, seed=0)
    with pytest.raises(ValueError, match="one resample"):
        bootstrap([1.0], 0, 0.95, seed=0)
    with pytest.raises(ValueError, match="not 1 and 2"):
        paired_difference([1.0], [1.0, 2.0], 10, 0.95, seed=0)
    with pytest.raises(ValueError, match="not 1 and 2"):
        ratio([1.0], [1.0, 2.0], 10, 0.95, seed=0)
