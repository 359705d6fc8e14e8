from __future__ import annotations

import warnings

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.data.labels import bradley_terry, dawid_skene, quality
from stages.data.votes import CHOSEN, REJECTED, TIE, Ballots, share

SKILLS = (0.95, 0.9, 0.8, 0.6, 0.55, 0.55)
"""How often each simulated annotator is right."""


def made(pairs: int, votes: list[tuple[int, int, int]], annotators: int = 3) -> Ballots:
    """``votes`` as (pair, annotator, vote)."""
    pair, annotator, vote = np.array(votes).reshape(-1, 3).T
    names = tuple(f"a{n}" for n in range(annotators))
    asked = np.ones(pairs, np.bool_)
    return Ballots(names, asked, pair.astype(np.int32), annotator.astype(np.int32), vote.astype(np.int8))


def simulated(pairs: int = 1500, each: int = 4, seed: int = 0) -> tuple[NDArray[np.int8], Ballots]:
    """True preferences, and the votes of annotators of whom ``each`` see a pair."""
    generator = np.random.default_rng(seed)
    truth = generator.choice(np.array([REJECTED, CHOSEN], np.int8), pairs)
    annotator = np.concatenate([generator.choice(len(SKILLS), each, replace=False) for _ in range(pairs)])
    pair = np.repeat(np.arange(pairs), each)
    right = generator.random(len(pair)) < np.array(SKILLS)[annotator]
    votes = np.stack([pair, annotator, np.where(right, truth[pair], -truth[pair])], axis=1)
    return truth, made(pairs, votes.tolist(), len(SKILLS))


def swapped(ballots: Ballots, pairs: NDArray[np.bool_]) -> Ballots:
    """The same votes with chosen and rejected changed places in some pairs."""
    vote = np.where(pairs[ballots.pair], -ballots.vote, ballots.vote).astype(np.int8)
    return Ballots(ballots.annotators, ballots.asked, ballots.pair, ballots.annotator, vote)


def reordered(ballots: Ballots, order: NDArray[np.int64]) -> Ballots:
    """The same votes in another order."""
    columns = (column[order] for column in (ballots.pair, ballots.annotator, ballots.vote))
    return Ballots(ballots.annotators, ballots.asked, *columns)


def test_dawid_skene_finds_how_good_annotators_are() -> None:
    _, ballots = simulated()
    _, accuracy = dawid_skene(ballots)
    np.testing.assert_allclose(accuracy, SKILLS, atol=0.05)


def test_dawid_skene_is_nearer_the_truth_than_the_plain_share() -> None:
    truth, ballots = simulated()
    probability, _ = dawid_skene(ballots)
    prefers = truth == CHOSEN
    model, plain = (np.mean((p - prefers) ** 2) for p in (probability, share(ballots)))
    assert model < 0.6 * plain
    assert np.mean((probability > 0.5) == prefers) > np.mean((share(ballots) > 0.5) == prefers) + 0.05


def test_dawid_skene_does_not_depend_on_the_order_of_votes() -> None:
    _, ballots = simulated(400)
    order = np.random.default_rng(1).permutation(len(ballots.vote))
    for one, other in zip(dawid_skene(ballots), dawid_skene(reordered(ballots, order)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_dawid_skene_does_not_depend_on_which_answer_is_called_chosen() -> None:
    """Files often call chosen what most voted for; a model that takes that for a fact believes chosen everywhere."""
    _, ballots = simulated(400)
    flip = share(ballots) < 0.5
    probability, accuracy = dawid_skene(ballots)
    other, same = dawid_skene(swapped(ballots, flip))
    np.testing.assert_allclose(other, np.where(flip, 1 - probability, probability), atol=1e-6)
    np.testing.assert_allclose(accuracy, same, atol=1e-6)
    assert (other < 0.5).any()


def test_ties_are_a_label_of_their_own_to_dawid_skene() -> None:
    votes = [(pair, person, CHOSEN) for pair in range(8) for person in range(3)]
    votes += [(8, person, TIE) for person in range(3)]
    votes += [(9, 0, REJECTED), (9, 1, REJECTED), (9, 2, TIE)]
    probability, accuracy = dawid_skene(made(10, votes))
    assert probability[:8] == pytest.approx(1.0, abs=1e-3)
    assert probability[8] == pytest.approx(0.5, abs=1e-3)
    assert probability[9] < 0.5
    assert accuracy[0] == pytest.approx(1.0, abs=1e-3)
    assert accuracy[2] < accuracy[0]


def test_dawid_skene_with_little_to_go_by() -> None:
    alone, accuracy = dawid_skene(made(3, [(0, 0, CHOSEN), (1, 0, REJECTED), (2, 0, TIE)], 1))
    assert alone == pytest.approx([1.0, 0.0, 0.5], abs=1e-6)
    assert accuracy == pytest.approx([1.0], abs=1e-6)
    split, _ = dawid_skene(made(1, [(0, 0, CHOSEN), (0, 1, REJECTED)], 2))
    assert split == pytest.approx([0.5], abs=1e-6)
    gaps, people = dawid_skene(made(3, [(1, 1, CHOSEN)], 2))
    assert np.isnan(gaps).tolist() == [True, False, True]
    assert np.isnan(people).tolist() == [True, False]
    for nothing in dawid_skene(made(2, [])):
        assert np.isnan(nothing).all()


def names(*values: int) -> NDArray[np.uint64]:
    return np.array(values, np.uint64)


def test_bradley_terry_comes_out_where_its_equations_say() -> None:
    """At the maximum every answer's expected wins are its wins, the imagined answer's half votes among them."""
    chosen, rejected = names(1, 2, 1, 3), names(2, 3, 3, 1)
    wins = [(3, 1), (4, 0), (2, 2), (0, 1)]  # votes for chosen and for rejected
    votes = [(n, 0, CHOSEN) for n, (up, _) in enumerate(wins) for _ in range(up)]
    votes += [(n, 0, REJECTED) for n, (_, down) in enumerate(wins) for _ in range(down)]
    p = bradley_terry(made(4, votes, 1), chosen, rejected)
    odds = p / (1 - p)
    assert odds[0] * odds[1] == pytest.approx(odds[2])  # strengths: one number per answer, so ratios multiply
    assert p[3] == pytest.approx(1 - p[2])
    expected, won = np.zeros(4), np.zeros(4)
    for n, (up, down) in enumerate(wins):
        a, b = int(chosen[n]), int(rejected[n])
        expected[a] += (up + down) * p[n]
        expected[b] += (up + down) * (1 - p[n])
        won[a] += up
        won[b] += down
    # The imagined answer makes up for the rest: won + 1/2 = expected + s / (s + s0), with its strength s0.
    beside = 0.5 + (won - expected)[1:]
    strength = beside / (1 - beside)
    assert strength[0] / strength[1] == pytest.approx(odds[0], rel=1e-3)
    assert strength[1] / strength[2] == pytest.approx(odds[1], rel=1e-3)


@pytest.mark.parametrize(("up", "down", "ties"), [(1, 0, 0), (5, 0, 0), (0, 3, 0), (2, 1, 1), (40, 1, 0)])
def test_bradley_terry_of_one_pair_is_the_share_drawn_towards_one_half(up: int, down: int, ties: int) -> None:
    votes = [(0, 0, CHOSEN)] * up + [(0, 0, REJECTED)] * down + [(0, 0, TIE)] * ties
    ballots = made(1, votes, 1)
    (p,), (plain,) = bradley_terry(ballots, names(7), names(9)), share(ballots)
    assert min(plain, 0.5) <= p <= max(plain, 0.5)
    assert abs(p - 0.5) < abs(plain - 0.5)
    # With n votes and s the ratio of an answer's strength to the imagined one's: won + 1/2 = n p + s/(s + 1),
    # and p = s^2 / (s^2 + 1) since the two answers lie on either side of it.
    s = np.sqrt(p / (1 - p))
    assert up + ties / 2 + 0.5 == pytest.approx((up + down + ties) * p + s / (s + 1), rel=1e-3)


def test_answers_that_never_lose_have_finite_strength() -> None:
    votes = [(n, 0, CHOSEN) for n in range(3) for _ in range(50)]
    p = bradley_terry(made(3, votes, 1), names(1, 1, 2), names(2, 3, 3))
    assert ((p > 0.9) & (p < 1)).all()
    assert p[1] > p[0]


def test_comparisons_of_an_answer_elsewhere_bear_on_its_pairs() -> None:
    """A vote against an answer that beats others counts for more than one against an answer that nobody prefers."""
    rows = [(0, 0, CHOSEN)] + [(1, 0, CHOSEN)] * 9
    strong = bradley_terry(made(2, rows, 1), names(1, 2), names(2, 3))
    assert strong[0] < bradley_terry(made(1, rows[:1], 1), names(1), names(2))[0]
    apart = bradley_terry(made(2, rows, 1), names(1, 4), names(2, 3))
    assert apart[0] == bradley_terry(made(1, rows[:1], 1), names(1), names(2))[0]


def test_bradley_terry_does_not_depend_on_the_order_or_on_sides() -> None:
    generator = np.random.default_rng(0)
    first = generator.integers(0, 40, 120).astype(np.uint64)
    second = (first // 4 * 4 + (first + generator.integers(1, 4, 120).astype(np.uint64)) % 4).astype(np.uint64)
    votes = [(n, 0, int(v)) for n in range(120) for v in generator.integers(-1, 2, 3)]
    ballots = made(120, votes, 1)
    p = bradley_terry(ballots, first, second)
    np.testing.assert_array_equal(
        p, bradley_terry(reordered(ballots, generator.permutation(len(votes))), first, second)
    )
    every = np.ones(120, np.bool_)
    np.testing.assert_allclose(bradley_terry(swapped(ballots, every), second, first), 1 - p, atol=1e-9)
    order = generator.permutation(120)
    place = np.argsort(order).astype(np.int32)
    moved = Ballots(ballots.annotators, ballots.asked, place[ballots.pair], ballots.annotator, ballots.vote)
    np.testing.assert_array_equal(bradley_terry(moved, first[order], second[order]), p[order])


def test_bradley_terry_with_little_to_go_by() -> None:
    p = bradley_terry(made(4, [(0, 0, TIE), (2, 0, CHOSEN)], 1), names(1, 1, 5, 0), names(2, 3, 5, 0))
    assert p[0] == pytest.approx(0.5)
    assert p[2] == 0.5  # an answer against itself
    assert np.isnan(p[[1, 3]]).all()


def test_quality_is_json_with_and_without_a_model() -> None:
    ballots = made(3, [(0, 0, CHOSEN), (0, 1, CHOSEN), (1, 0, TIE), (2, 0, REJECTED), (2, 1, CHOSEN)])
    table = quality(ballots, None)
    assert table[0] == {"annotator": "a0", "votes": 3, "ties": 1, "compared": 2, "agreement": 0.5}
    assert table[2] == {"annotator": "a2", "votes": 0, "ties": 0, "compared": 0, "agreement": None}
    with_model = quality(ballots, np.array([0.75, 0.5, np.nan]))
    assert [row["accuracy"] for row in with_model] == [0.75, 0.5, None]


def test_what_the_library_calls_does_not_reach_users() -> None:
    _, ballots = simulated(20)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        dawid_skene(ballots)
        bradley_terry(ballots, names(*range(1, 21)), names(*range(101, 121)))
    assert not seen
