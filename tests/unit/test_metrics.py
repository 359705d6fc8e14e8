from __future__ import annotations

import numpy as np
import pytest

from stages.core.bootstrap import Interval, bootstrap
from stages.core.metrics import step_means


@pytest.mark.parametrize("count", [1, 7])
def test_constant_data_have_an_interval_without_width(count: int) -> None:
    assert bootstrap([0.75] * count, 100, 0.95, seed=0) == Interval(0.75, 0.75, 0.75)


def test_the_bootstrap_repeats_with_its_seed() -> None:
    data = np.random.default_rng(1).random(30).tolist()
    first = bootstrap(data, 200, 0.95, seed=3)
    assert first == bootstrap(data, 200, 0.95, seed=3)
    assert first != bootstrap(data, 200, 0.95, seed=4)
    assert first.mean == pytest.approx(np.mean(data))
    assert first.low < first.mean < first.high


def test_more_confidence_means_a_wider_interval() -> None:
    data = np.random.default_rng(1).random(30).tolist()
    narrow, wide = (bootstrap(data, 1000, confidence, seed=0) for confidence in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_the_interval_is_about_as_wide_as_the_normal_one() -> None:
    """For 400 uniform values the mean's standard error is sqrt(1/12 / 400) = 0.01443; 95% is +- 1.96 of it."""
    interval = bootstrap(np.random.default_rng(0).random(400).tolist(), 2000, 0.95, seed=0)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 0.01443, rel=0.1)


def test_a_90_percent_interval_holds_the_truth_in_about_90_percent_of_samples() -> None:
    """200 samples of 40 coin throws: 180 +- 4.2 hits are expected (a discrete mean costs a few)."""
    generator = np.random.default_rng(0)
    hits = 0
    for number in range(200):
        throws = (generator.random(40) < 0.5).astype(float).tolist()
        interval = bootstrap(throws, 200, 0.9, seed=number)
        hits += interval.low <= 0.5 <= interval.high
    assert 165 <= hits <= 194


def test_step_means_divide_all_but_the_counts() -> None:
    means = step_means({"loss": 10.0, "pairs": 4.0, "tokens": 70.0, "loss/ipo": 3.0})
    assert means == {"loss": 2.5, "pairs": 4.0, "tokens": 70.0, "loss/ipo": 0.75}


def test_step_means_of_a_task_are_over_its_own_pairs() -> None:
    means = step_means({"pairs": 4.0, "task/a/b/pairs": 2.0, "task/a/b/loss": 1.0, "task/none/pairs": 1.0})
    assert means == {"pairs": 4.0, "task/a/b/pairs": 2.0, "task/a/b/loss": 0.5, "task/none/pairs": 1.0}
