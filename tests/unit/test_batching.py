from __future__ import annotations

import pytest

from stages.train.batching import batch_indices, total_steps, worker_share

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
    shares = [list(worker_share(size, rank, workers)) for rank in range(workers)]
    assert sorted(place for share in shares for place in share) == list(range(size))
    lengths = [len(share) for share in shares]
    assert max(lengths) - min(lengths) <= 1
