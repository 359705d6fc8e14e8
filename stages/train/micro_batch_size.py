"""``resources.train.micro_batch_tokens: auto``: the largest micro-batch that fits on a card, found once a training."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.base import LEAST_TOKENS, TrainResources
from stages.core.forward.packing import Batch, Layout, collate, micro_batches, tokens_in
from stages.core.losses.objective import Objective
from stages.core.tokens.pair import EncodedPair
from stages.io.output import Output
from stages.train.config import FitConfig
from stages.train.gradients import MicroBatchError, no_sync
from stages.train.worker import PairData, Worker

_MOST = 65_536
_SHARE = 0.85
"""Of the card's memory: pairs differ in length, and what is freed does not always fit together again."""
_LOOKED_AT = 4096
"""Pairs, spread over all, among which the longest is looked for."""


@dataclass(frozen=True)
class Found:
    """``tried``: sizes in the order in which they were tried, with the share of the memory that each took, infinite
    where it did not fit; empty if none had to be."""

    tokens: int
    tried: tuple[tuple[int, float], ...] = ()

    def __str__(self) -> str:
        """What a message says of it."""
        if not self.tried:
            return f"auto is {self.tokens} on a CPU"
        sizes = ", ".join(f"{n} {'too much' if share == math.inf else f'{share:.0%}'}" for n, share in self.tried)
        return f"auto took {self.tokens}; of the memory it found {sizes}"


def search(probe: Callable[[int], float], agree: Callable[[float], float] = lambda share: share) -> Found:
    """Double the size for as long as it fits.

    Args:
        probe: the share of the memory that a micro-batch of so many tokens takes, infinite if it does not fit.
        agree: the largest of all workers' shares; all come to it equally often.

    Raises:
        MicroBatchError: not even the smallest fits.
    """
    tried: list[tuple[int, float]] = []
    tokens = LEAST_TOKENS
    while tokens <= _MOST:
        share = agree(probe(tokens))
        tried.append((tokens, share))
        if share > _SHARE:
            break
        tokens *= 2
    fitting = [size for size, share in tried if share <= _SHARE]
    if not fitting and tried[0][1] == math.inf:
        raise MicroBatchError(f"out of memory in a micro-batch of {LEAST_TOKENS} tokens, the fewest that auto tries")
    return Found(max(fitting, default=LEAST_TOKENS), tuple(tried))


def find(
    model: torch.nn.Module, layout: Layout, optimizer: torch.optim.Optimizer, data: PairData, config: FitConfig,
    objective: Objective, resources: TrainResources, worker: Worker, output: Output,
) -> Found:  # fmt: skip
    """The size to use: the one that is asked for; with ``auto`` the one that the training has had before, else the
    largest that fits. All workers call this, before the first step."""
    if resources.micro_batch_tokens != "auto":
        return Found(resources.micro_batch_tokens)
    if worker.device.type != "cuda":
        return Found(LEAST_TOKENS)
    place, subject = f"{output.work}/micro-batch", _subject(resources, worker)
    known = _remembered(output.store.read(place), subject) if worker.rank == 0 else None
    if tokens := int(_largest(worker, known.tokens if known else 0)):  # what worker 0 has read
        return known or Found(tokens)
    probe = _Probe(model, layout, optimizer, longest(data, layout), config, objective, resources, worker)
    found = search(probe, lambda share: _largest(worker, share))
    if worker.rank == 0:
        output.store.write(place, json.dumps({"for": subject, "tokens": found.tokens, "tried": found.tried}).encode())
        print(f"resources.train.micro_batch_tokens: {found}", flush=True)
    return found


def _subject(resources: TrainResources, worker: Worker) -> list[object]:
    """What a size was found for: with another card, or other shares, it is looked for anew."""
    card = torch.cuda.get_device_properties(worker.device)
    shares = worker.world if worker.lockstep else 1
    return [card.name, card.total_memory, min(1.0, resources.gpus), resources.checkpointing, shares, resources.offload]


def _remembered(data: bytes | None, subject: list[object]) -> Found | None:
    said = json.loads(data) if data is not None else {}
    if said.get("for") != subject:
        return None
    return Found(said["tokens"], tuple((size, share) for size, share in said["tried"]))


def _largest(worker: Worker, value: float) -> float:
    """The largest of all workers' values."""
    values = torch.zeros(worker.world, dtype=torch.float64)
    values[worker.rank] = value
    return float(worker.all_sum(values).max())


def longest(data: PairData, layout: Layout) -> EncodedPair:
    """The longest pair, of very many among some that are spread over all."""
    step = -(-len(data) // _LOOKED_AT)
    return max(data.pairs(range(0, len(data), step)), key=lambda pair: tokens_in(pair, layout))


def filled(pair: EncodedPair, layout: Layout, tokens: int) -> Batch:
    """A micro-batch of one pair as often as it fits, at least once: none of so many tokens takes more memory."""
    pairs = [pair] * max(1, tokens // tokens_in(pair, layout))
    return collate(pairs[: len(micro_batches(pairs, layout, tokens)[0])], layout)


class _Probe:
    """Takes a micro-batch through the model and back, and looks at the memory. The weights stay as they are."""

    def __init__(
        self, model: torch.nn.Module, layout: Layout, optimizer: torch.optim.Optimizer, pair: EncodedPair,
        config: FitConfig, objective: Objective, resources: TrainResources, worker: Worker,
    ) -> None:  # fmt: skip
        self._model, self._layout, self._pair, self._worker = model, layout, pair, worker
        self._confident = objective.needs_confidence
        self._moments = 0 if optimizer.state or resources.offload else _moments(model, config)
        self._last: tuple[int, float] = (0, 0.0)
        torch.cuda.empty_cache()
        free, whole = torch.cuda.mem_get_info(worker.device)
        used = torch.cuda.memory_allocated(worker.device)
        self._room = min(whole * min(1.0, resources.gpus), free + used)
        self._before = used / self._room

    def __call__(self, tokens: int) -> float:
        batch = filled(self._pair, self._layout, tokens)
        pairs, share = self._last
        if batch.pairs == pairs:
            return share
        if self._worker.lockstep and pairs:
            # Whoever ran out of memory would leave the others waiting for ever: what is sure to be too much is not
            # tried. All workers have to see it in the same way.
            expected = _largest(self._worker, self._before + (share - self._before) * batch.pairs / pairs)
            if expected > _SHARE:
                return expected
        self._last = batch.pairs, self._taken(batch)
        return self._last[1]

    def _taken(self, batch: Batch) -> float:
        device, fits = self._worker.device, True
        torch.cuda.reset_peak_memory_stats(device)
        try:
            self._pass(batch.to(device))
        except torch.OutOfMemoryError:
            fits = False
        self._model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        return torch.cuda.max_memory_allocated(device) / self._room if fits else math.inf

    def _pass(self, batch: Batch) -> None:
        """Twice: a step's second micro-batch finds gradients there."""
        moments = torch.empty(self._moments, dtype=torch.uint8, device=self._worker.device)
        for _ in range(2):
            with no_sync(self._model):
                handle = self._model(batch, _nothing, self._confident).handle
                torch.autograd.backward(handle)
        del moments  # they were to be there in the backward pass


def _nothing(first: int, stop: int, logprobs: Tensor, _confidences: Tensor) -> Tensor:
    """Slopes of zero, which cost what others do."""
    return torch.zeros_like(logprobs[: 2 * (stop - first)])


def _moments(model: torch.nn.Module, config: FitConfig) -> int:
    """Bytes of what an optimizer keeps from its first step on."""
    parameters: Sequence[torch.nn.Parameter] = [p for p in model.parameters() if p.requires_grad]
    numbers: int = sum((p.to_local() if hasattr(p, "to_local") else p).numel() for p in parameters)
    return numbers * (2 if config.optimizer == "adamw_8bit" else 8)
