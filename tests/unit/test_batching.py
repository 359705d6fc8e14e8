from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from stages.core.batching import (
    batch_indices,
    collate,
    micro_batches,
    pair_length,
    total_steps,
    worker_share,
)
from tests.memory import encoded, random_pairs

SHAPES = [(10, 4, 3), (7, 7, 2), (5, 8, 3), (1, 1, 4), (3, 16, 2), (64, 16, 1)]
"""(pairs, batch size, epochs), among them a batch larger than an epoch and larger than everything."""


def everything(pairs: int, batch_size: int, epochs: int, seed: int = 0) -> list[list[int]]:
    return [batch_indices(s, pairs, batch_size, epochs, seed) for s in range(total_steps(pairs, batch_size, epochs))]


@pytest.mark.parametrize(
    ("pairs", "batch_size", "epochs", "steps"), [(8, 4, 1, 2), (9, 4, 1, 3), (9, 4, 2, 5), (1, 32, 1, 1), (5, 8, 3, 2)]
)
def test_total_steps(pairs: int, batch_size: int, epochs: int, steps: int) -> None:
    assert total_steps(pairs, batch_size, epochs) == steps


@pytest.mark.parametrize(("pairs", "batch_size", "epochs"), SHAPES)
def test_every_epoch_holds_every_pair_once(pairs: int, batch_size: int, epochs: int) -> None:
    stream = [index for batch in everything(pairs, batch_size, epochs) for index in batch]
    assert len(stream) == pairs * epochs
    for epoch in range(epochs):
        assert sorted(stream[epoch * pairs : (epoch + 1) * pairs]) == list(range(pairs))


@pytest.mark.parametrize(("pairs", "batch_size", "epochs"), SHAPES)
def test_only_the_last_batch_may_be_smaller(pairs: int, batch_size: int, epochs: int) -> None:
    sizes = [len(batch) for batch in everything(pairs, batch_size, epochs)]
    assert all(size == batch_size for size in sizes[:-1])
    assert 0 < sizes[-1] <= batch_size


def test_the_order_does_not_depend_on_the_batch_size() -> None:
    streams = {tuple(i for batch in everything(12, size, 2) for i in batch) for size in (1, 3, 5, 24)}
    assert len(streams) == 1


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    first, second = everything(50, 50, 2, seed=1)
    other, _ = everything(50, 50, 2, seed=2)
    assert first != second
    assert first != other
    assert first != list(range(50))
    assert everything(50, 50, 2, seed=1) == [first, second]


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [1, 5, 8, 16])
def test_worker_shares_partition_the_batch_evenly(workers: int, size: int) -> None:
    batch = [10 * i for i in range(size)]
    shares = [worker_share(batch, rank, workers) for rank in range(workers)]
    assert sorted(i for share in shares for i in share) == batch
    lengths = [len(share) for share in shares]
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("bound", [1, 64, 200, 1000, 10**6])
def test_micro_batches_hold_every_pair_once_within_the_bound(bound: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 60).tolist()
    groups = micro_batches(lengths, bound)
    assert Counter(i for group in groups for i in group) == Counter(range(60))
    for group in groups:
        assert group
        assert len(group) == 1 or 2 * len(group) * max(lengths[i] for i in group) <= bound


def test_micro_batches_are_as_large_as_the_bound_allows() -> None:
    assert micro_batches([16] * 6, 96) == [[0, 1, 2], [3, 4, 5]]
    assert micro_batches([16] * 6, 95) == [[0, 1], [2, 3], [4, 5]]
    assert micro_batches([], 60) == []


def test_pairs_of_similar_length_go_together() -> None:
    groups = micro_batches([100, 1, 99, 2, 98, 3], 624)
    assert sorted(map(sorted, groups)) == [[0, 2, 4], [1, 3, 5]]


@pytest.mark.parametrize("bound", [100, 300, 1000])
def test_no_padded_micro_batch_exceeds_the_bound(bound: int) -> None:
    """What has to fit in memory is the padded batch."""
    pairs = random_pairs(40, longest=30)
    for group in micro_batches([pair_length(pair) for pair in pairs], bound):
        batch = collate([pairs[i] for i in group], pad_id=0)
        assert len(group) == 1 or batch.ids.numel() <= bound


def test_pair_length_is_that_of_the_longer_sequence() -> None:
    assert pair_length(encoded([1, 2, 3], [4], [5, 6])) == 5
    assert pair_length(encoded([1, 2, 3], [4, 5, 6], [7])) == 6


def test_collate_puts_chosen_first_pads_right_and_marks_responses() -> None:
    batch = collate([encoded([11, 12], [13], [14, 15]), encoded([21], [22, 23, 24], [25])], pad_id=9)
    assert batch.pairs == 2
    assert batch.ids.dtype == torch.int64
    assert batch.ids.tolist() == [
        [11, 12, 13, 9, 9, 9, 9, 9],
        [21, 22, 23, 24, 9, 9, 9, 9],
        [11, 12, 14, 15, 9, 9, 9, 9],
        [21, 25, 9, 9, 9, 9, 9, 9],
    ]
    marked = [[i for i, counts in enumerate(row) if counts] for row in batch.mask.tolist()]
    assert marked == [[2], [1, 2, 3], [2, 3], [1]]


def test_tokens_of_a_response_that_do_not_count_are_not_marked() -> None:
    pair = encoded([1], [2, 3, 4], [5])
    pair.chosen_mask[1] = False
    assert collate([pair], pad_id=0).mask[0].tolist() == [False, True, False, True, False, False, False, False]


def test_padding_is_to_the_next_multiple_of_eight() -> None:
    lengths = [collate([encoded([1], [2] * n, [3])], pad_id=0).ids.shape[1] for n in range(1, 18)]
    assert all(length % 8 == 0 for length in lengths)
    assert lengths[6] == 8  # 1 + 7 tokens fit exactly
    assert lengths[7] == 16
    assert all(b - a in (0, 8) for a, b in pairwise(lengths))
