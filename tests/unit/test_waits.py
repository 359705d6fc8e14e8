"""What a training step would wait for on a card: the numbers that Python looks at."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForSequenceClassification

from stages.core.forward.logprobs import ResponseLogprobs
from stages.core.forward.packing import Layout, collate
from stages.core.forward.rewards import ResponseRewards
from stages.core.forward.transfer import send
from stages.core.losses.bradley_terry import BradleyTerry
from stages.core.losses.objective import Objective
from stages.score.model import ScoringModel
from stages.train.gradients import accumulate
from stages.train.loop import train_steps
from stages.train.worker import Worker
from tests import zoo
from tests.unit import test_gradients as steps

WAITS = {
    "_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "bincount", "masked_select", "unique_consecutive",
    "_unique2", "unique_dim",
}  # fmt: skip
"""Operations whose result Python or the next operation's size depends on; a card has to be done before."""
MADE = {"lift_fresh"}
"""A tensor made of Python's numbers, which a card gets from memory that is not pinned."""

CPU_ALONE = "stages/core/forward/attention.py"
"""A card has another attention."""


class Watch(TorchDispatchMode):
    """Notes the operations that a card would be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        by_truth = name in ("index", "index_put_") and any(
            part is not None and part.dtype == torch.bool for part in args[1]
        )
        if name in WAITS | MADE or by_truth:
            self.note(name)
        return function(*args, **(kwargs or {}))

    def note(self, name: str) -> None:
        frames = traceback.extract_stack()[-22:-2]
        if name in MADE and any(frame.filename.endswith(CPU_ALONE) for frame in frames):
            return
        where = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in frames]
        self.waits.append(f"{name} at {' '.join(where)}")


@contextmanager
def watched() -> Iterator[Watch]:
    """``tolist`` and ``cpu`` are noted too: they are not operations on a CPU."""
    watch = Watch()
    with pytest.MonkeyPatch.context() as patch, watch:
        for name in ("tolist", "cpu", "numpy"):
            patch.setattr(Tensor, name, _noted(watch, name, getattr(Tensor, name)))
        yield watch


def _noted(watch: Watch, name: str, method: Any) -> Any:
    def call(self: Tensor, *arguments: Any) -> Any:
        watch.note(name)
        return method(self, *arguments)

    return call


def test_what_would_wait_is_seen() -> None:
    values = torch.arange(3.0)
    with watched() as watch:
        float(values[0])
        values.tolist()
        values[values > 1]
        torch.tensor([1.0])
    assert [wait.split()[0] for wait in watch.waits] == ["_local_scalar_dense", "tolist", "index", "lift_fresh"]


@pytest.mark.parametrize("layout", ["shared", "padded"])
@pytest.mark.parametrize("name", steps.LOSSES)
def test_a_gradient_is_worked_out_without_a_wait(name: str, layout: Layout) -> None:
    objective, worker = Objective(steps.fp32(**steps.LOSSES[name])), Worker(micro_batch_tokens=60)
    work, model = steps.load(steps.data(9), worker, objective, layout), steps.scorer(layout)
    assert len(work.micro) > 2
    if layout == "padded":
        model.model.set_attn_implementation("sdpa")  # as on a card
    with watched() as watch:
        accumulate(model, work, objective, worker)
    assert watch.waits == []


@pytest.mark.parametrize("name", ["gemma2", "phi3"])
def test_so_is_that_of_a_family_that_runs_its_own_layers(name: str) -> None:
    objective, worker = Objective(steps.fp32()), Worker(micro_batch_tokens=60)
    model = ResponseLogprobs(zoo.model(name), "shared", "fp32")
    work = steps.load(steps.data(9), worker, objective)
    with watched() as watch:
        accumulate(model, work, objective, worker)
    assert watch.waits == []


def test_so_is_that_of_a_reward_model() -> None:
    worker, objective = Worker(micro_batch_tokens=30), BradleyTerry(0.5)
    config = LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_labels=1
    )
    model = ResponseRewards(LlamaForSequenceClassification(config), "shared", "fp32")
    work = steps.load(steps.data(5), worker, objective)
    with watched() as watch:
        accumulate(model, work, objective, worker)
    assert watch.waits == []


@pytest.mark.parametrize("name", ["sigmoid", "several, coupled"])
def test_a_step_waits_once_however_many_micro_batches_it_has(name: str) -> None:
    waits = []
    for tokens in (30, 10**6):
        model = steps.scorer()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        config = steps.fp32(**steps.LOSSES[name], batch_size=8, epochs=2)
        rows = train_steps(model, optimizer, steps.data(8), config, Worker(micro_batch_tokens=tokens), "shared")
        next(rows)
        with watched() as watch:
            next(rows)
        waits.append([wait.split()[0] for wait in watch.waits])
    assert waits[0] == waits[1] == ["cpu", "tolist"]  # the tolist of what cpu has brought


def test_log_probabilities_are_fetched_once() -> None:
    model = ScoringModel.__new__(ScoringModel)
    model.device, model.layout, model.model = torch.device("cpu"), "shared", steps.scorer()
    pairs = steps.data(40).items
    expected = torch.cat([model.model(collate([pair], "shared")).logprobs for pair in pairs]).view(-1, 2)
    with watched() as watch:
        found = model.score(pairs)
    assert [wait.split()[0] for wait in watch.waits if not wait.startswith("lift_fresh")] == ["cpu"]
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-4)
    assert model.score([]).shape == (0, 2)


def test_what_goes_to_a_card_goes_from_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: calls.append("pinned") or tensor)
    monkeypatch.setattr(Tensor, "to", lambda tensor, *given, **named: calls.append((*given, named)) or tensor)
    cpu, card = torch.device("cpu"), torch.device("cuda", 1)
    send(torch.ones(1), card)
    send(torch.ones(1), cpu)
    assert calls == ["pinned", (card, {"non_blocking": True}), (cpu, {})]
