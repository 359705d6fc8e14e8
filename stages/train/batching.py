"""Which pairs an optimizer step sees, and which worker takes which. Pure and deterministic."""

from __future__ import annotations

import numpy as np


def total_steps(pairs: int, batch_size: int, epochs: int) -> int:
    """Optimizer steps of a training; the last one may hold fewer pairs."""
    return -(-pairs * epochs // batch_size)


def batch_indices(step: int, pairs: int, batch_size: int, epochs: int, seed: int) -> list[int]:
    """Indices of the pairs of optimizer step ``step`` (from 0).

    Each epoch is a permutation of all pairs, drawn from (seed, epoch); the epochs follow one another without a
    gap. Depends on nothing else, so that a run can continue at any step.
    """
    start, stop = step * batch_size, min((step + 1) * batch_size, pairs * epochs)
    indices: list[int] = []
    while start < stop:
        epoch, offset = divmod(start, pairs)
        take = min(stop - start, pairs - offset)
        order = np.random.default_rng([seed, epoch]).permutation(pairs)
        indices += order[offset : offset + take].tolist()
        start += take
    return indices


def worker_share(size: int, rank: int, workers: int) -> range:
    """The places in a batch of ``size`` that one worker takes: every ``workers``-th, at most one more than another."""
    return range(rank, size, workers)
