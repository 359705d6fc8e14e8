from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from stages.data.hashing import repeats, within_cap

PAIRS = np.random.default_rng(0).integers(0, 2**64, 4000, np.uint64)


def test_without_a_cap_or_below_it_every_pair_stays() -> None:
    assert within_cap(PAIRS, None).all()
    assert within_cap(PAIRS, len(PAIRS)).all()
    assert within_cap(PAIRS[:0], 3).tolist() == []


def test_a_cap_leaves_exactly_so_many() -> None:
    assert within_cap(PAIRS, 700).sum() == 700
    assert within_cap(np.repeat(PAIRS[:3], 5), 7).sum() == 7


def test_what_a_cap_leaves_does_not_depend_on_the_order() -> None:
    order = np.random.default_rng(1).permutation(len(PAIRS))
    assert set(PAIRS[within_cap(PAIRS, 700)]) == set(PAIRS[order][within_cap(PAIRS[order], 700)])


def test_new_pairs_displace_no_more_than_their_number() -> None:
    before = set(PAIRS[:3000][within_cap(PAIRS[:3000], 700)])
    after = set(PAIRS[:3010][within_cap(PAIRS[:3010], 700)])
    assert len(before - after) <= 10
    assert after - before <= set(PAIRS[3000:3010])


def test_a_smaller_cap_leaves_some_of_the_same_pairs() -> None:
    assert not (within_cap(PAIRS, 100) & ~within_cap(PAIRS, 700)).any()


@pytest.mark.parametrize(("weight", "least"), [(1.0, 1), (2.0, 2), (5.0, 5)])
def test_a_whole_weight_takes_every_pair_so_often(weight: float, least: int) -> None:
    assert set(repeats(PAIRS, weight).tolist()) == {least}


@pytest.mark.parametrize("weight", [0.1, 0.5, 1.5, 2.25])
def test_a_fraction_takes_about_that_share_once_more(weight: float) -> None:
    found = repeats(PAIRS, weight)
    assert set(found.tolist()) == {int(weight), int(weight) + 1}
    assert found.mean() == pytest.approx(weight, abs=0.03)


def test_a_pair_is_taken_as_often_whatever_other_pairs_there_are() -> None:
    alone = np.concatenate([repeats(PAIRS[n : n + 1], 0.4) for n in range(500)])
    np.testing.assert_array_equal(alone, repeats(PAIRS, 0.4)[:500])


def test_a_larger_weight_takes_no_pair_less_often() -> None:
    found = [repeats(PAIRS, weight) for weight in (0.01, 0.5, 0.9, 1.0, 1.2, 1.7, 2.0)]
    assert all((more >= less).all() for less, more in pairwise(found))


def test_the_choices_of_cap_weight_and_split_are_independent() -> None:
    """Were they one hash, the pairs that a cap leaves would all be among those that a weight takes."""
    kept = within_cap(PAIRS, 1000)
    assert repeats(PAIRS[kept], 0.5).mean() == pytest.approx(0.5, abs=0.05)
    low = ~(PAIRS >> np.uint64(63)).astype(np.bool_)
    assert within_cap(PAIRS, 1000)[low].mean() == pytest.approx(0.25, abs=0.03)
    assert repeats(PAIRS[low], 0.5).mean() == pytest.approx(0.5, abs=0.04)
