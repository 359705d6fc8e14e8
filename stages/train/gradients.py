"""The gradient of one optimizer step: micro-batches, workers, and losses that look across pairs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stages.core.forward.packing import Batch, Layout, collate, micro_batches
from stages.core.losses.inputs import LossInput, loss_input
from stages.core.losses.objective import Objective, Outcome
from stages.core.metrics import BY_TASK, step_means
from stages.core.tokens.pair import EncodedPair
from stages.train.batching import worker_share
from stages.train.worker import PairData, Worker


class MicroBatchError(Exception):
    """A micro-batch did not fit in memory. The message names its pairs."""


class _MicroBatch(NamedTuple):
    places: list[int]
    """Where in the step's batch the pairs stand."""
    pairs: list[EncodedPair]
    tensors: Batch
    weight: float
    """1, or 0 for one that is only gone through so as to take part in what all workers do together."""


@dataclass(frozen=True)
class StepData:
    """One worker's part of an optimizer step, read and collated.

    ``pairs`` are all pairs of the step, ``reference`` float32 [3, pairs] theirs.
    """

    pairs: list[EncodedPair]
    reference: Tensor
    micro: list[_MicroBatch]
    mismatched: list[_MicroBatch]


def load_step(data: PairData, batch: Sequence[int], worker: Worker, layout: Layout, mismatched: bool) -> StepData:
    """Read what ``worker`` needs of the pairs ``batch``; with ``mismatched`` also the prompts with other answers."""
    pairs = data.pairs(batch)
    others = data.mismatched(batch) if mismatched else []
    own = _grouped(pairs, worker, layout)
    return StepData(
        pairs, data.reference(batch).to(worker.device), own, _grouped(others, worker, layout) if others else []
    )


def _grouped(pairs: list[EncodedPair], worker: Worker, layout: Layout) -> list[_MicroBatch]:
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
    return [
        _MicroBatch(group, chosen, collate(chosen, layout).to(worker.device), weight)
        for group, weight in weighted
        for chosen in [[pairs[place] for place in group]]
    ]


@dataclass
class _Sums:
    """What a worker adds up over its pairs of a step. ``tasks`` are those of all its pairs, whoever has them: every
    worker adds up the same names."""

    reference: bool
    coupled: bool
    tasks: tuple[str, ...] = ()
    values: dict[str, float] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)

    def add(self, outcome: Outcome, x: LossInput, pairs: Sequence[EncodedPair], weight: float) -> None:
        margin = outcome.chosen_reward - outcome.rejected_reward
        chosen, rejected = x.chosen.detach(), x.rejected.detach()
        # On the training responses: the mean of log pi(y) - log ref(y), the plain (k1) estimate of the divergence.
        sides = (x.chosen_tokens > 0).float() + (x.rejected_tokens > 0).float()
        kl = ((chosen - x.ref_chosen) + (rejected - x.ref_rejected)) / sides
        columns = {
            "loss": outcome.losses.detach(),
            "reward_accuracy": (margin > 0).float(),
            "reward_margin": margin,
            "chosen_reward": outcome.chosen_reward,
            "rejected_reward": outcome.rejected_reward,
            "chosen_logp": chosen,
            "rejected_logp": rejected,
            **({"kl": kl} if self.reference else {}),
            **outcome.parts,
        }
        for task in self.tasks:
            own = torch.tensor([float(pair.task == task) for pair in pairs], device=margin.device)
            columns[f"task/{task}/pairs"] = own
            columns |= {f"task/{task}/{name}": columns[name] * own for name in BY_TASK}
        for name, column in columns.items():
            self.values[name] = self.values.get(name, 0.0) + weight * float(column.double().sum())
        finite = torch.isfinite(torch.stack([chosen, rejected, x.ref_chosen, x.ref_rejected])).all(0)
        if not self.coupled:  # one pair can spoil another's loss there
            finite &= torch.isfinite(columns["loss"])
        self.bad += [pair.name for pair, good in zip(pairs, finite.tolist(), strict=True) if weight and not good]
        self.values["pairs"] = self.values.get("pairs", 0.0) + weight * len(pairs)
        tokens = sum(2 * len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in pairs)
        self.values["tokens"] = self.values.get("tokens", 0.0) + weight * tokens


def accumulate(
    model: torch.nn.Module, work: StepData, objective: Objective, worker: Worker
) -> tuple[dict[str, float], list[str]]:
    """Leave the step's gradient in the parameters.

    Returns:
        The step's metrics over all workers, and the names of this worker's pairs whose loss, or what it is made of,
        is not finite.
    """
    kl = _mismatched_kl(model, work, worker) if objective.needs_kl else None
    # Distributed training averages gradients over workers; the mean over all pairs of the step is what is wanted.
    scale = worker.world / len(work.pairs)
    tasks = tuple(sorted({pair.task for pair in work.pairs} - {""}))
    sums = _Sums(objective.needs_reference, objective.coupled, tasks)
    slopes = _coupled_slopes(model, work, objective, worker, kl, sums) if objective.coupled else None
    for number, micro in enumerate(work.micro):
        last = number == len(work.micro) - 1

        def weigh(first: int, stop: int, logprobs: Tensor, confidences: Tensor, micro: _MicroBatch = micro) -> Tensor:
            places = micro.places[first:stop]
            if slopes is not None:
                return slopes[places].flatten() * (micro.weight * scale)
            pairs = micro.pairs[first:stop]
            x = loss_input(pairs, logprobs, confidences, work.reference[:, places], kl)
            outcome, slope = _slopes(objective, x, pairs)
            sums.add(outcome, x, pairs, micro.weight)
            return slope.flatten() * (micro.weight * scale)

        with contextlib.nullcontext() if last or worker.world == 1 else _no_sync(model), _named(micro):
            handle = model(micro.tensors, weigh, objective.needs_confidence).handle
            torch.autograd.backward(handle)
    names = list(sums.values)
    totals = worker.all_sum(torch.tensor([sums.values[name] for name in names], dtype=torch.float64))
    return step_means(dict(zip(names, totals.tolist(), strict=True))), sums.bad


def _slopes(objective: Objective, x: LossInput, pairs: Sequence[EncodedPair]) -> tuple[Outcome, Tensor]:
    """The outcome, and the derivative of the summed loss by the log-probabilities, float32 [pairs, 2]."""
    with torch.enable_grad():
        outcome = objective(x, pairs)
        by = torch.autograd.grad(outcome.losses.sum(), (x.chosen, x.rejected), allow_unused=True)
    return outcome, torch.stack([torch.zeros_like(x.chosen) if slope is None else slope for slope in by], 1)


@torch.no_grad()
def _coupled_slopes(
    model: torch.nn.Module, work: StepData, objective: Objective, worker: Worker, kl: Tensor | None, sums: _Sums
) -> Tensor:
    """The slopes [pairs of the step, 2] of a loss that looks across pairs.

    All log-probabilities are worked out without gradient and brought together first, so that the loss sees the whole
    step at once whatever the micro-batches and workers; the pass with gradient then only applies the slopes.
    """
    values = _scored(model, work.micro, len(work.pairs), worker, objective.needs_confidence)
    x = loss_input(work.pairs, values[:, :2].flatten(), values[:, 2:].flatten(), work.reference, kl)
    outcome, slopes = _slopes(objective, x, work.pairs)
    for micro in work.micro:
        sums.add(_part(outcome, micro.places), _part_of_input(x, micro.places), micro.pairs, micro.weight)
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
        values[micro.places] += micro.weight * found
    return worker.all_sum(values).to(worker.device)


@torch.no_grad()
def score(model: torch.nn.Module, pairs: list[EncodedPair], worker: Worker, layout: Layout) -> Tensor:
    """Log-probabilities of chosen and rejected responses, float32 [pairs, 2], each worked out by one of the workers;
    all call it."""
    return _scored(model, _grouped(pairs, worker, layout), len(pairs), worker)[:, :2].cpu()


def _part(outcome: Outcome, places: list[int]) -> Outcome:
    parts = {name: value[places] for name, value in outcome.parts.items()}
    return Outcome(outcome.losses[places], outcome.chosen_reward[places], outcome.rejected_reward[places], parts)


def _part_of_input(x: LossInput, places: list[int]) -> LossInput:
    columns = {name: value[places] for name, value in vars(x).items() if isinstance(value, Tensor) and value.dim()}
    return LossInput(**{**vars(x), **columns})


@torch.no_grad()
def _mismatched_kl(model: torch.nn.Module, work: StepData, worker: Worker) -> Tensor:
    """KTO's z0: the mean of log pi(y') - log ref(y') over the step's prompts with answers to others, at least 0
    (Ethayarajh et al., arXiv:2402.01306, section 4.1); 0 where there is no other prompt."""
    total = torch.zeros((), dtype=torch.float32, device=work.reference.device)
    for micro in work.mismatched:
        with _named(micro):
            scored = model(micro.tensors, None, False)
        found = scored.logprobs.view(-1, 2)[:, 0] - work.reference[2, micro.places]
        total += micro.weight * found.sum()
    return (worker.all_sum(total).to(work.reference.device) / len(work.pairs)).clamp(min=0)


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


def _no_sync(model: Any) -> contextlib.AbstractContextManager[None]:
    """Put the reduction over workers off to the last micro-batch. With sharded weights it is done for each: the
    gradients of all weights would else have to stand whole on every worker."""
    context: contextlib.AbstractContextManager[None] = (
        model.no_sync() if hasattr(model, "no_sync") else contextlib.nullcontext()
    )
    return context
