"""The training loop: torch only, no Ray, no files. Yields after every optimizer step."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from stages.catalog import TrainConfig
from stages.core.batching import batch_indices, collate, micro_batches, pair_length, total_steps, worker_share
from stages.core.logprobs import sequence_logprobs
from stages.core.losses import LossInput
from stages.core.metrics import SUMS, step_means
from stages.core.objective import Objective
from stages.core.templates import EncodedPair


class PairData(Protocol):
    """Random access to encoded pairs and their reference log-probabilities."""

    def __len__(self) -> int: ...
    def pairs(self, indices: Sequence[int]) -> list[EncodedPair]: ...
    def reference(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Worker:
    """This worker's place among the others. ``all_sum`` adds a tensor up over all of them."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    micro_batch_tokens: int = 4096
    all_sum: Callable[[Tensor], Tensor] = lambda value: value


def learning_rate_factor(step: int, steps: int, warmup: float, schedule: str) -> float:
    """Factor on the learning rate at optimizer step ``step`` (from 0): a linear rise over ``warmup`` of the steps,
    then linear or cosine decay towards zero, or constant."""
    rise = round(warmup * steps)
    if step < rise:
        return (step + 1) / rise
    progress = (step - rise) / max(1, steps - rise)
    return {"linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress)), "constant": 1.0}[schedule]


def train_steps(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    data: PairData,
    config: TrainConfig,
    worker: Worker,
    first_step: int = 0,
    pad_id: int = 0,
) -> Iterator[dict[str, float]]:
    """Train from ``first_step`` on, yielding one row of metrics after each optimizer step.

    ``model`` maps (ids, mask) to log-probabilities of sequences (``ResponseLogprobs``), bare or wrapped in
    DistributedDataParallel. Gradients are those of the mean loss over all pairs of the optimizer step, however
    the step is split into workers and micro-batches.
    """
    steps = total_steps(len(data), config.batch_size, config.epochs)
    trainable = [p for p in model.parameters() if p.requires_grad]
    for step in range(first_step, steps):
        started = time.perf_counter()
        torch.manual_seed(_step_seed(config.seed, step, worker.rank))
        factor = learning_rate_factor(step, steps, config.warmup, config.schedule)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * factor
        sums = accumulate_gradients(model, data, config, worker, step, pad_id)
        norm = torch.nn.utils.clip_grad_norm_(trainable, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        means = step_means(sums.tolist())
        seconds = time.perf_counter() - started
        yield {
            "step": step + 1,
            "steps": steps,
            "epoch": min((step + 1) * config.batch_size / len(data), config.epochs),
            **means,
            "grad_norm": float(norm),
            "learning_rate": config.learning_rate * factor,
            "tokens_per_second": means["tokens"] / seconds,
            "seconds": seconds,
        }


def _step_seed(seed: int, step: int, rank: int) -> int:
    """Randomness (an adapter's dropout) depends on the step and the worker alone, so that nothing of it needs to be
    saved and workers draw different masks."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


def accumulate_gradients(
    model: torch.nn.Module, data: PairData, config: TrainConfig, worker: Worker, step: int, pad_id: int
) -> Tensor:
    """Leave the step's gradient in the parameters and return the step's sums (``SUMS``) over all workers."""
    batch = batch_indices(step, len(data), config.batch_size, config.epochs, config.seed)
    share = worker_share(batch, worker.rank, worker.world)
    weight = 1.0
    if not share:  # fewer pairs than workers in the last step: take part in the reduction, count for nothing
        share, weight = batch[:1], 0.0
    pairs = data.pairs(share)
    groups = micro_batches([pair_length(pair) for pair in pairs], worker.micro_batch_tokens)
    # DDP averages gradients over workers; the sum over all pairs of the step is what is wanted.
    scale = weight * worker.world / len(batch)
    sums = torch.zeros(len(SUMS), dtype=torch.float64)
    for number, group in enumerate(groups):
        last = number == len(groups) - 1
        with contextlib.nullcontext() if last or worker.world == 1 else _no_sync(model):
            loss, part = _micro_step(model, data, config, worker, [share[i] for i in group], pad_id)
            torch.autograd.backward(loss * scale)
        sums += weight * part
    return worker.all_sum(sums)


def _no_sync(model: Any) -> contextlib.AbstractContextManager[None]:
    context: contextlib.AbstractContextManager[None] = model.no_sync()
    return context


def _micro_step(
    model: torch.nn.Module, data: PairData, config: TrainConfig, worker: Worker, indices: list[int], pad_id: int
) -> tuple[Tensor, Tensor]:
    """Summed loss of some pairs, with its graph, and their ``SUMS``."""
    pairs = data.pairs(indices)
    batch = collate(pairs, pad_id).to(worker.device)
    ref_chosen, ref_rejected = (value.to(worker.device) for value in data.reference(indices))
    probability = torch.tensor([pair.probability for pair in pairs], device=worker.device)
    chosen, rejected = sequence_logprobs(model, batch, config.precision)
    counted = batch.mask.sum(1).float()
    of_chosen, of_rejected = counted[: len(pairs)], counted[len(pairs) :]
    x = LossInput(chosen, rejected, ref_chosen, ref_rejected, of_chosen, of_rejected, probability)
    outcome = Objective(config)(x, pairs)
    losses, chosen_reward, rejected_reward = outcome.losses, outcome.chosen_reward, outcome.rejected_reward
    margin = chosen_reward - rejected_reward
    chosen, rejected = chosen.detach(), rejected.detach()
    # On the training responses: the mean of log pi(y) - log ref(y), the plain (k1) estimate of the divergence.
    kl = 0.5 * ((chosen - ref_chosen) + (rejected - ref_rejected))
    columns = [losses.detach(), (margin > 0).float(), margin, chosen_reward, rejected_reward, chosen, rejected, kl]
    values = [column.double().sum().item() for column in columns]
    tokens = sum(2 * len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in pairs)
    return losses.sum(), torch.tensor([*values, len(pairs), tokens], dtype=torch.float64)
