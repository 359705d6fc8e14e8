"""``micro_batch_tokens: auto``: what is tried, taken and remembered; the card's memory is a fake."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stages.base import TrainResources
from stages.core.losses.objective import Objective
from stages.io.output import Output
from stages.io.store import Store
from stages.train import micro_batch_size
from stages.train.config import TrainConfig
from stages.train.gradients import MicroBatchError
from stages.train.loop import train_steps
from stages.train.micro_batch_size import Found, search
from stages.train.session import explain
from stages.train.worker import Worker
from tests.memory import MemoryData, encoded, random_pairs
from tests.unit.test_gradients import data, fp32, scorer
from tests.workers import Group, Replica

CARD, GIB = torch.device("cuda", 0), 2**30
AUTO = TrainResources(gpus=1, micro_batch_tokens="auto")


def linear(limit: int) -> Callable[[int], float]:
    """A card that holds so many tokens."""
    return lambda tokens: tokens / limit if tokens <= limit else math.inf


@pytest.mark.parametrize(
    ("limit", "taken", "last"),
    [
        (2410, 2048, 4096),  # 2,048 of 2,410 are 85%
        (10_000, 8192, 16_384),
        (16_384, 8192, 16_384),  # it fits, but leaves less than 15%
        (10**6, 65_536, 65_536),
    ],
)
def test_the_largest_power_of_two_that_leaves_room_is_taken(limit: int, taken: int, last: int) -> None:
    found = search(linear(limit))
    assert found.tokens == taken
    assert [size for size, _ in found.tried] == [2048 * 2**n for n in range((last // 2048).bit_length())]


def test_a_smallest_one_that_fits_closely_is_taken_and_one_that_does_not_is_an_error() -> None:
    assert search(linear(2100)) == Found(2048, ((2048, 2048 / 2100),))
    with pytest.raises(MicroBatchError, match="2048 tokens, the fewest that auto tries"):
        search(linear(2000))


def test_all_workers_take_what_fits_on_the_smallest_card() -> None:
    group = Group(3)

    def work(rank: int) -> Found:
        worker = Worker(rank, 3, all_sum=partial(group.all_sum, rank))
        return search(linear((10**5, 9000, 10**6)[rank]), partial(micro_batch_size._largest, worker))

    assert {found.tokens for found in group.run(work)} == {4096}


class Memory:
    """Looks like ``torch.cuda``: what a forward pass of so many tokens takes is told by ``bytes_of``."""

    def __init__(self, room: int, tokens_fit: int = 10**9) -> None:
        self.room, self.tokens_fit = room, tokens_fit
        self.seen: list[int] = []

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {
            "empty_cache": lambda: None,
            "mem_get_info": lambda _: (self.room, self.room),
            "memory_allocated": lambda _: 0,
            "reset_peak_memory_stats": lambda _: None,
            "max_memory_allocated": lambda _: self.seen[-1],
            "get_device_properties": lambda _: SimpleNamespace(name="Card", total_memory=self.room),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)


class Card(torch.nn.Module):
    """A model on a card with so much memory; one token takes a byte."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.module, self.memory = scorer(), memory
        self.had_gradients: list[bool] = []

    def forward(self, batch: Any, *others: Any) -> Any:
        self.memory.seen.append(batch.ids.numel())
        self.had_gradients.append(any(p.grad is not None for p in self.parameters()))
        if batch.ids.numel() > self.memory.tokens_fit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.module(batch, *others)


def probe(model: torch.nn.Module, resources: TrainResources = AUTO, **worker: Any) -> micro_batch_size._Probe:
    subject = MemoryData([*random_pairs(4), encoded(range(3, 43), range(43, 73), range(73, 103))])
    optimizer = torch.optim.AdamW(model.parameters())
    pair = micro_batch_size.longest(subject, "shared")
    assert len(pair.prompt_ids) == 40
    return micro_batch_size._Probe(
        model, "shared", optimizer, pair, fp32(), Objective(fp32()), resources, Worker(**worker)
    )


def test_micro_batches_of_the_longest_pair_go_there_and_back_and_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(room=1000, tokens_fit=500)
    memory.patch(monkeypatch)
    model = Card(memory)
    before = [p.clone() for p in model.parameters()]
    subject = probe(model)
    shares = [subject(tokens) for tokens in (50, 200, 220, 450, 900)]
    assert shares == [0.112, 0.112, 0.208, 0.4, math.inf]  # 100 tokens are padded to 112
    assert memory.seen == [112, 112, 208, 208, 400, 400, 800]  # as long as there is the same in it it is tried once
    assert model.had_gradients == [False, True, False, True, False, True, False]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_half_a_card_has_half_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(room=1000)
    memory.patch(monkeypatch)
    assert probe(Card(memory), TrainResources(gpus=0.5, micro_batch_tokens="auto"))(50) == 112 / 500


def test_with_shared_weights_what_is_sure_to_be_too_much_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(room=1000)
    memory.patch(monkeypatch)
    subject = probe(Card(memory), lockstep=True)
    assert [subject(tokens) for tokens in (450, 1000)] == [0.4, 9 / 4 * 0.4]
    assert max(memory.seen) == 400


def test_the_moments_that_the_first_step_makes_are_counted() -> None:
    model = torch.nn.Linear(10, 10)
    assert micro_batch_size._moments(model, TrainConfig()) == 8 * 110
    assert micro_batch_size._moments(model, TrainConfig(optimizer="adamw_8bit")) == 2 * 110
    model.bias.requires_grad_(False)
    assert micro_batch_size._moments(model, TrainConfig()) == 8 * 100


def test_those_in_main_memory_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(room=1000)
    memory.patch(monkeypatch)
    offloaded = AUTO.model_copy(update={"offload": True})
    assert probe(Card(memory))._moments == 8 * sum(p.numel() for p in Card(memory).parameters())
    assert probe(Card(memory), offloaded)._moments == 0


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(Store.at(str(tmp_path / "store")), "f" * 8, "i" * 8)


def chosen(output: Output, resources: TrainResources, **worker: Any) -> Found:
    model = scorer()
    return micro_batch_size.find(
        model, "shared", torch.optim.SGD(model.parameters(), lr=0.1), data(3), fp32(), Objective(fp32()), resources,
        Worker(**worker), output,
    )  # fmt: skip


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes that are tried; 5,000 tokens fit."""
    tried: list[int] = []

    def fake(*_: Any) -> Callable[[int], float]:
        return lambda tokens: tried.append(tokens) or linear(5000)(tokens)

    monkeypatch.setattr(micro_batch_size, "_Probe", fake)
    Memory(80 * GIB).patch(monkeypatch)
    return tried


def test_a_number_is_taken_as_it_is_and_on_a_cpu_auto_is_the_default(output: Output, searches: list[int]) -> None:
    assert chosen(output, TrainResources(micro_batch_tokens=77), device=CARD).tokens == 77
    assert chosen(output, TrainResources(micro_batch_tokens="auto")).tokens == 2048
    assert searches == []
    assert output.store.read(f"{output.work}/micro-batch") is None


def test_it_is_searched_for_once_a_training(output: Output, searches: list[int]) -> None:
    first = chosen(output, AUTO, device=CARD)
    assert (first.tokens, searches) == (4096, [2048, 4096, 8192])
    assert chosen(output, AUTO, device=CARD) == first
    assert len(searches) == 3
    other = AUTO.model_copy(update={"checkpointing": True})
    for number, resources in enumerate((other, other.model_copy(update={"offload": True})), 2):
        chosen(output, resources, device=CARD)
        assert len(searches) == 3 * number
    output.store.remove(output.work)  # as after the commit
    assert output.store.read(f"{output.work}/micro-batch") is None


def test_another_card_is_searched_anew(output: Output, searches: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    chosen(output, AUTO, device=CARD)
    Memory(40 * GIB).patch(monkeypatch)
    chosen(output, AUTO, device=CARD)
    assert len(searches) == 6


def test_workers_take_what_the_first_has_read(output: Output, searches: list[int]) -> None:
    chosen(output, AUTO, device=CARD)
    place = f"{output.work}/micro-batch"
    kept = json.loads(output.store.read(place) or b"")
    output.store.write(place, json.dumps(kept | {"tokens": 8192}).encode())
    group = Group(2)
    found = group.run(
        lambda rank: chosen(output, AUTO, rank=rank, world=2, device=CARD, all_sum=partial(group.all_sum, rank))
    )
    assert [each.tokens for each in found] == [8192, 8192]
    assert len(searches) == 3


def test_training_out_of_memory_says_what_auto_had_tried() -> None:
    error = MicroBatchError("out of memory in a micro-batch of 4000 tokens, 9 pairs: a, b")
    found = Found(4096, ((2048, 0.4), (4096, 0.8), (8192, math.inf)))
    said = explain(error, AUTO, found)
    assert said.startswith("out of memory in a micro-batch of 4000 tokens, 9 pairs: a, b; set ")
    for part in (
        "resources.train.micro_batch_tokens below 4096",
        "auto took 4096; of the memory it found 2048 40%, 4096 80%, 8192 too much",
        "checkpointing: true",
        "prepare.max_length",
    ):
        assert part in said
    assert "below 2048, set resources.train.checkpointing" in explain(error, AUTO)


@pytest.mark.parametrize("value", [0, -5, 1.5, True, "most", None])
def test_only_a_number_or_auto_is_taken(value: Any) -> None:
    with pytest.raises(ValueError, match=r"expected a number of tokens, at least 1, or auto"):
        TrainResources(micro_batch_tokens=value)


def test_a_probe_takes_a_replica_too_and_what_follows_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(room=1000)
    memory.patch(monkeypatch)
    rows = []
    for probed in (True, False):
        model = Replica(Card(memory), Group(1), 0)
        if probed:
            probe(model)(450)
            assert model.quiet == 2  # nothing is exchanged
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        config = fp32(batch_size=4)
        rows.append([row["loss"] for row in train_steps(model, optimizer, data(8), config, Worker(), "shared")])
    assert rows[0] == rows[1]
