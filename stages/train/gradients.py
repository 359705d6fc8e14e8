"""The gradient of one optimizer step: micro-batches, workers, and losses that look across pairs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stages.core.forward.packing import Batch, Layout, collate, micro_batches
from stages.core.forward.transfer import send
from stages.core.losses.inputs import LossInput, of_known
from stages.core.losses.objective import Objective, Outcome
from stages.core.tokens.pair import EncodedPair
from stages.train.batching import worker_share
from stages.train.sums import Sums, columns_of, known_of, reference_of
from stages.train.worker import PairData, Worker


class MicroBatchError(Exception):
    """A micro-batch did not fit in memory. The message names its pairs."""


class _MicroBatch(NamedTuple):
    places: list[int]
    """Where in the step's batch the pairs stand."""
    pairs: list[EncodedPair]
    tensors: Batch
    at: Tensor
    """``places`` on the worker's device."""
    columns: Tensor
    """What is known of ``pairs`` (``columns_of``), there too."""
    weight: float
    """1, or 0 for one that is only gone through so as to take part in what all workers do together."""


@dataclass(frozen=True)
class StepData:
    """One worker's part of an optimizer step, read, collated and on its device.

    ``pairs`` are all pairs of the step, ``columns`` what is known of them, ``tasks`` theirs.
    """

    pairs: list[EncodedPair]
    columns: Tensor
    tasks: tuple[str, ...]
    micro: list[_MicroBatch]
    mismatched: list[_MicroBatch]

    @property
    def reference(self) -> Tensor:
        """The reference's log-probabilities, float32 [3, pairs]."""
        return reference_of(self.columns)


def load_step(data: PairData, batch: Sequence[int], worker: Worker, layout: Layout, mismatched: bool) -> StepData:
    """Read what ``worker`` needs of the pairs ``batch``; with ``mismatched`` also the prompts with other answers."""
    pairs = data.pairs(batch)
    others = data.mismatched(batch) if mismatched else []
    tasks = tuple(sorted({pair.task for pair in pairs} - {""}))
    columns = columns_of(pairs, data.reference(batch), tasks)
    own = _grouped(pairs, columns, worker, layout)
    rest = _grouped(others, columns, worker, layout) if others else []
    return StepData(pairs, send(columns, worker.device), tasks, own, rest)


def _grouped(pairs: list[EncodedPair], columns: Tensor, worker: Worker, layout: Layout) -> list[_MicroBatch]:
    """The micro-batches of ``worker``. In lockstep every worker has as many as the one with the most: each can tell
    from the pairs' lengths how the others group theirs, and repeats its last one without weight.
    """

    def groups_of(rank: int) -> list[list[int]]:
        places = worker_share(len(pairs), rank, worker.world)
        groups = micro_batches([pairs[place] for place in places], layout, worker.micro_batch_tokens)
        return [[places[index] for index in group] for group in groups]

    groups = groups_of(worker.rank)
    count = max(len(groups), 1)  # a worker without a pair of its own goes through another's
    if worker.lockstep:
        count = max(len(groups_of(rank)) for rank in range(worker.world))
    repeats = count - len(groups)
    weighted = [(group, 1.0) for group in groups] + [((groups or [[0]])[-1], 0.0)] * repeats
    device = worker.device

    def made(group: list[int], weight: float) -> _MicroBatch:
        chosen = [pairs[place] for place in group]
        at, own = send(torch.tensor(group), device), send(columns[:, group], device)
        return _MicroBatch(group, chosen, collate(chosen, layout).to(device), at, own, weight)

    return [made(group, weight) for group, weight in weighted]


def accumulate(model: torch.nn.Module, work: StepData, objective: Objective, worker: Worker) -> Sums:
    """Leave the step's gradient in the parameters; returns what there is to know of the step, over all workers.

    A card is not waited for: it gets its work faster than it does it.
    """
    kl = _mismatched_kl(model, work, worker) if objective.needs_kl else None
    # Distributed training averages gradients over workers; the mean over all pairs of the step is what is wanted.
    scale = worker.world / len(work.pairs)
    sums = Sums(objective.needs_reference, objective.coupled, work.tasks)
    slopes = _coupled_slopes(model, work, objective, worker, kl, sums) if objective.coupled else None
    for number, micro in enumerate(work.micro):
        last = number == len(work.micro) - 1

        def weigh(first: int, stop: int, logprobs: Tensor, confidences: Tensor, micro: _MicroBatch = micro) -> Tensor:
            if slopes is not None:
                return slopes[micro.at[first:stop]].flatten() * (micro.weight * scale)
            pairs, columns = micro.pairs[first:stop], micro.columns[:, first:stop]
            x = of_known(known_of(columns), logprobs, confidences, reference_of(columns), kl)
            outcome, slope = _slopes(objective, x, pairs)
            sums.add(outcome, x, pairs, columns, micro.weight)
            return slope.flatten() * (micro.weight * scale)

        with contextlib.nullcontext() if last or worker.world == 1 else no_sync(model), _named(micro):
            handle = model(micro.tensors, weigh, objective.needs_confidence).handle
            torch.autograd.backward(handle)
    sums.over(worker)
    return sums


def _slopes(objective: Objective, x: LossInput, pairs: Sequence[EncodedPair]) -> tuple[Outcome, Tensor]:
    """The outcome, and the derivative of the summed loss by the log-probabilities, float32 [pairs, 2]."""
    with torch.enable_grad():
        outcome = objective(x, pairs)
        by = torch.autograd.grad(outcome.losses.sum(), (x.chosen, x.rejected), allow_unused=True)
    return outcome, torch.stack([torch.zeros_like(x.chosen) if slope is None else slope for slope in by], 1)


@torch.no_grad()
def _coupled_slopes(
    model: torch.nn.Module, work: StepData, objective: Objective, worker: Worker, kl: Tensor | None, sums: Sums
) -> Tensor:
    """The slopes [pairs of the step, 2] of a loss that looks across pairs.

    All log-probabilities are worked out without gradient and brought together first, so that the loss sees the whole
    step at once whatever the micro-batches and workers; the pass with gradient then only applies the slopes.
    """
    values = _scored(model, work.micro, len(work.pairs), worker, objective.needs_confidence)
    own = known_of(work.columns)
    x = of_known(own, values[:, :2].flatten(), values[:, 2:].flatten(), work.reference, kl)
    outcome, slopes = _slopes(objective, x, work.pairs)
    for micro in work.micro:
        part, given = _part(outcome, micro.at), _part_of_input(x, micro.at)
        sums.add(part, given, micro.pairs, micro.columns, micro.weight)
    return slopes


def _scored(
    model: torch.nn.Module, micro_batches: Sequence[_MicroBatch], pairs: int, worker: Worker, confident: bool = False
) -> Tensor:
    """Log-probabilities of chosen and rejected responses and the confidences in them, float32 [pairs, 4], of all
    workers' pairs."""
    values = torch.zeros(pairs, 4, dtype=torch.float32, device=worker.device)
    for micro in micro_batches:
        with _named(micro):
            scored = model(micro.tensors, None, confident)
        found = torch.cat([scored.logprobs.view(-1, 2), scored.confidences.view(-1, 2)], 1)
        values.index_add_(0, micro.at, micro.weight * found)
    return worker.all_sum(values).to(worker.device)


@torch.no_grad()
def score(model: torch.nn.Module, pairs: list[EncodedPair], worker: Worker, layout: Layout) -> Tensor:
    """Log-probabilities of chosen and rejected responses, float32 [pairs, 2], each worked out by one of the workers;
    all call it."""
    grouped = _grouped(pairs, torch.zeros(0, len(pairs)), worker, layout)
    return _scored(model, grouped, len(pairs), worker)[:, :2].cpu()


def _part(outcome: Outcome, places: Tensor) -> Outcome:
    parts = {name: value[places] for name, value in outcome.parts.items()}
    return Outcome(outcome.losses[places], outcome.chosen_reward[places], outcome.rejected_reward[places], parts)


def _part_of_input(x: LossInput, places: Tensor) -> LossInput:
    columns = {name: value[places] for name, value in vars(x).items() if isinstance(value, Tensor) and value.dim()}
    return LossInput(**{**vars(x), **columns})


@torch.no_grad()
def _mismatched_kl(model: torch.nn.Module, work: StepData, worker: Worker) -> Tensor:
    """KTO's z0: the mean of log pi(y') - log ref(y') over the step's prompts with answers to others, at least 0
    (Ethayarajh et al., arXiv:2402.01306, section 4.1); 0 where there is no other prompt."""
    total = torch.zeros((), dtype=torch.float32, device=worker.device)
    for micro in work.mismatched:
        with _named(micro):
            scored = model(micro.tensors, None, False)
        found = scored.logprobs.view(-1, 2)[:, 0] - reference_of(micro.columns)[2]
        total += micro.weight * found.sum()
    return (worker.all_sum(total).to(worker.device) / len(work.pairs)).clamp(min=0)


@contextlib.contextmanager
def _named(micro: _MicroBatch) -> Iterator[None]:
    """Say which pairs it was that did not fit in memory."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate" not in str(error):
            raise
        tokens, ids = micro.tensors.ids.numel(), ", ".join(pair.name for pair in micro.pairs[:10])
        raise MicroBatchError(
            f"out of memory in a micro-batch of {tokens} tokens, {len(micro.pairs)} pairs: {ids}"
        ) from error


def no_sync(model: Any) -> contextlib.AbstractContextManager[None]:
    """Put the reduction over workers off to the last micro-batch. With sharded weights it is done for each: the
    gradients of all weights would else have to stand whole on every worker."""
    context: contextlib.AbstractContextManager[None] = (
        model.no_sync() if hasattr(model, "no_sync") else contextlib.nullcontext()
    )
    return context
