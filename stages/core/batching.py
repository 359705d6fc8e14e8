"""Which pairs an optimizer step sees, and how a batch is cut into padded micro-batches. Pure and deterministic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.core.templates import EncodedPair


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


def worker_share(indices: Sequence[int], rank: int, workers: int) -> list[int]:
    """One worker's part of a batch: every ``workers``-th pair. Differs by at most one pair between workers."""
    return list(indices[rank::workers])


def micro_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Positions grouped so that sequences of similar length go together and padding stays small.

    Args:
        lengths: tokens of each pair's longer sequence.
        max_tokens: bound on 2 * pairs * longest of a group, padding included; a pair that is longer than that is a
            group of its own.
    """
    groups: list[list[int]] = []
    current: list[int] = []
    for position in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if current and 2 * (len(current) + 1) * padded(lengths[current[0]]) > max_tokens:
            groups.append(current)
            current = []
        current.append(position)
    return [*groups, current] if current else groups


def padded(length: int) -> int:
    """The next multiple of 8: matrix products are slower at odd sizes."""
    return -(-length // 8) * 8


def pair_length(pair: EncodedPair) -> int:
    """Tokens of the longer of the pair's two sequences."""
    return len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids))


@dataclass(frozen=True)
class Batch:
    """Padded sequences, the chosen ones first, then the rejected ones in the same order.

    ``ids`` int64 [2 * pairs, length], padded on the right. ``mask`` bool, the same shape: the token at this
    position counts as part of a response.
    """

    ids: Tensor
    mask: Tensor

    @property
    def pairs(self) -> int:
        return self.ids.shape[0] // 2

    def to(self, device: torch.device) -> Batch:
        return Batch(self.ids.to(device), self.mask.to(device))


def collate(pairs: Sequence[EncodedPair], pad_id: int) -> Batch:
    """Pad on the right to the longest sequence of the batch."""
    length = padded(max(map(pair_length, pairs)))
    ids = torch.full((2 * len(pairs), length), pad_id, dtype=torch.long)
    mask = torch.zeros((2 * len(pairs), length), dtype=torch.bool)
    sides = [(p, p.chosen_ids, p.chosen_mask) for p in pairs] + [(p, p.rejected_ids, p.rejected_mask) for p in pairs]
    for row, (pair, response, counts) in enumerate(sides):
        start, stop = len(pair.prompt_ids), len(pair.prompt_ids) + len(response)
        ids[row, :stop] = torch.tensor([*pair.prompt_ids, *response])
        mask[row, start:stop] = torch.tensor(counts)
    return Batch(ids, mask)
