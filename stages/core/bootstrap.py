"""Bootstrap over prompts: intervals of means, of paired differences, and of any statistic of resampled prompts.

Prompts are the clusters: answers to the same prompt are alike, so a resample takes a prompt with all that belongs to
it or not at all (Field and Welsh 2007, "Bootstrapping clustered data", doi 10.1111/j.1467-9868.2007.00593.x; its
cluster bootstrap). Intervals are percentile intervals (Efron 1979, doi 10.1214/aos/1176344552).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

_CHUNK = 1 << 20
"""Drawn indices held at once: 8 MiB, and as much again for what is computed of them."""


@dataclass(frozen=True)
class Interval:
    mean: float
    low: float
    high: float


def draws(prompts: int, resamples: int, seed: int) -> Iterator[Indices]:
    """Resamples in chunks: each row holds the numbers of ``prompts`` prompts, drawn with replacement.

    The same seed gives the same resamples, whatever the size of the chunks.

    Raises:
        ValueError: no prompt, or no resample, is asked for.
    """
    if prompts < 1 or resamples < 1:
        raise ValueError("a bootstrap needs at least one prompt and one resample")
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // prompts)
    for start in range(0, resamples, rows):
        yield generator.integers(0, prompts, (min(rows, resamples - start), prompts))


def counts(drawn: Indices) -> Floats:
    """How often each prompt was drawn, (resamples, prompts), from the indices, (resamples, prompts)."""
    rows, prompts = drawn.shape
    flat = drawn + np.arange(rows)[:, None] * prompts
    return np.bincount(flat.ravel(), minlength=rows * prompts).reshape(rows, prompts).astype(np.float64)


def percentile(estimate: float, resampled: Floats, confidence: float) -> Interval:
    """The percentile interval of ``resampled``, (resamples,), around the estimate from the data themselves.

    A resample on which the statistic does not exist (NaN, such as a rate of no answers) is left out.
    """
    tail = (1 - confidence) / 2
    known = resampled[~np.isnan(resampled)]
    if not known.size:
        return Interval(estimate, float("nan"), float("nan"))
    low, high = np.quantile(known, [tail, 1 - tail])
    return Interval(estimate, float(low), float(high))


def bootstrap(values: Sequence[float] | Floats, resamples: int, confidence: float, seed: int) -> Interval:
    """Mean with its percentile bootstrap interval, resampling ``values``: (prompts,), one per prompt.

    Raises:
        ValueError: there are no values, or no resamples.
    """
    data = np.asarray(values, dtype=np.float64)
    means = [data[drawn].mean(axis=1) for drawn in draws(len(data), resamples, seed)]
    return percentile(float(data.mean()), np.concatenate(means), confidence)


def paired_difference(
    first: Sequence[float] | Floats, second: Sequence[float] | Floats, resamples: int, confidence: float, seed: int
) -> Interval:
    """Mean of ``first - second``, (prompts,) each, with its interval; both sides of a prompt are drawn together.

    Where the sides go up and down together over prompts this is narrower than the two sides' own intervals suggest.

    Raises:
        ValueError: the sides have different lengths, or none.
    """
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.shape != two.shape:
        raise ValueError(f"a paired difference needs the same prompts on both sides, not {len(one)} and {len(two)}")
    return bootstrap(one - two, resamples, confidence, seed)


def statistic(
    compute: Callable[[Floats], Floats], prompts: int, resamples: int, confidence: float, seed: int
) -> Interval:
    """A statistic with its interval.

    Args:
        compute: from weights, (rows, prompts), how often each prompt counts, to the statistic of each row, (rows,).
            It is asked once for weights of 1, which is the data themselves, and then for chunks of resamples. An
            estimate by repeated fits takes all rows of a chunk at once.

    Raises:
        ValueError: no prompt, or no resample, is asked for.
    """
    estimate = float(compute(np.ones((1, prompts)))[0])
    found = [compute(counts(drawn)) for drawn in draws(prompts, resamples, seed)]
    return percentile(estimate, np.concatenate(found), confidence)


def ratio(
    numerators: Sequence[float] | Floats,
    denominators: Sequence[float] | Floats,
    resamples: int,
    confidence: float,
    seed: int,
) -> Interval:
    """sum(numerators) / sum(denominators), (prompts,) each, with its interval: a mean over answers, by prompt.

    Use it where prompts have different numbers of answers, or of tokens, and each of those counts alike.
    """
    top, bottom = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if top.shape != bottom.shape:
        raise ValueError(f"a ratio needs the same prompts on both sides, not {len(top)} and {len(bottom)}")

    def compute(weights: Floats) -> Floats:
        below = weights @ bottom
        found: Floats = np.divide(weights @ top, below, out=np.full(len(weights), np.nan), where=below != 0)
        return found

    return statistic(compute, len(top), resamples, confidence, seed)
