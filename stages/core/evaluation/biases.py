"""What a judge's verdicts follow besides quality: the place of an answer, and its length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.core.bootstrap import Floats, Interval, bootstrap, ratio


@dataclass(frozen=True)
class PositionBias:
    """``changed``: share of the comparisons whose verdict on the answers is another one when their order is swapped,
    ties included. ``first``: share of the verdicts that are no ties that went to the first place; 0.5 is no bias."""

    changed: Interval
    first: Interval


def position_bias(
    given: Sequence[int], swapped: Sequence[int], *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> PositionBias:
    """Compare the verdicts of one judge on the same pairs of answers, once in each order.

    Zheng et al. 2023, arXiv:2306.05685, section 3.3 and table 2, call 1 - ``changed`` consistency. A judge that is
    changed often but has ``first`` at 0.5 is noisy rather than biased.

    Args:
        given, swapped: (comparisons,): 1 where the answer in the first place won, -1 the one in the second, 0 a tie.
            An unbiased judge has swapped = -given.

    Raises:
        ValueError: shapes differ, there are none, or a verdict is not 1, 0 or -1.
    """
    one, two = _verdicts(given), _verdicts(swapped)
    if one.shape != two.shape:
        raise ValueError(f"position bias needs the same comparisons in both orders, not {len(one)} and {len(two)}")
    firsts = (one == 1) + 0.0 + (two == 1)
    decided = np.abs(one) + np.abs(two)
    return PositionBias(
        changed=bootstrap((one != -two).astype(np.float64), resamples, confidence, seed),
        first=ratio(firsts, decided, resamples, confidence, seed),
    )


@dataclass(frozen=True)
class LengthBias:
    """``longer``: share of the verdicts, of those that are no ties and on answers of different lengths, for the longer
    answer. ``people``: the same of people's verdicts, or None. ``correlation``: Spearman's, of verdict and difference
    of lengths; NaN where either does not vary."""

    longer: Interval
    people: Interval | None
    correlation: float


def length_bias(
    verdicts: Sequence[int],
    length_differences: Sequence[float] | Floats,
    people: Sequence[int] | None = None,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> LengthBias:
    """How often the longer answer wins. People often prefer it too, as it may be the better one; so it is the excess of
    ``longer`` over ``people`` on the same comparisons that speaks of a bias.

    Args:
        verdicts: (comparisons,): 1 for the first answer, -1 for the second, 0 for a tie.
        length_differences: (comparisons,): first - second, in characters or tokens.
        people: (comparisons,): people's verdicts on the same.

    Raises:
        ValueError: shapes differ, there are none, a verdict is not 1, 0 or -1, or a difference is not finite.
    """
    judged, apart = _verdicts(verdicts), np.asarray(length_differences, dtype=np.float64)
    human = None if people is None else _verdicts(people)
    if judged.shape != apart.shape or (human is not None and human.shape != judged.shape):
        raise ValueError("length bias needs a verdict and a difference of lengths for every comparison")
    if not np.isfinite(apart).all():
        raise ValueError("length bias needs finite differences of lengths")

    def longer(said: Floats) -> Interval:
        return ratio((said * np.sign(apart) > 0) + 0.0, np.abs(said * np.sign(apart)), resamples, confidence, seed)

    return LengthBias(longer(judged), None if human is None else longer(human), _spearman(judged, apart))


def _spearman(one: Floats, two: Floats) -> float:
    ranks = np.array([_ranks(one), _ranks(two)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    size = float(np.sqrt((ranks**2).sum(axis=1).prod()))
    return float((ranks[0] * ranks[1]).sum()) / size if size else float("nan")


def _ranks(values: Floats) -> Floats:
    """Ranks from 0; equal values share the mean of theirs."""
    _, which, sizes = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(sizes) - (sizes + 1) / 2)[which], dtype=np.float64)


def _verdicts(given: Sequence[int]) -> Floats:
    found = np.asarray(given, dtype=np.float64)
    if not found.size or not np.isin(found, (-1, 0, 1)).all():
        raise ValueError("a verdict is 1, 0 or -1, and there is at least one")
    return found
