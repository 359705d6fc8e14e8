"""The training loop: torch only, no Ray, no files. Yields after every optimizer step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from stages.core.forward.packing import Layout
from stages.core.losses.bradley_terry import BradleyTerry
from stages.core.losses.config import ObjectiveConfig
from stages.core.losses.objective import Objective
from stages.train.batching import batch_indices, total_steps
from stages.train.config import FitConfig, RewardConfig
from stages.train.gradients import StepData, accumulate, load_step
from stages.train.worker import PairData, Worker


class NotFiniteError(Exception):
    """A step's loss or gradient is not a finite number; the weights are still those from before the step.

    ``pairs`` name this worker's pairs whose loss is not finite; empty when they are another worker's, or
    when only the gradient is not finite.
    """

    def __init__(self, step: int, what: str, pairs: Sequence[str]) -> None:
        super().__init__(f"{what} not finite at step {step}")
        self.step, self.what, self.pairs = step, what, tuple(pairs)


def learning_rate_factor(step: int, steps: int, warmup: float, schedule: str) -> float:
    """Factor on the learning rate at optimizer step ``step`` (from 0): a linear rise over ``warmup`` of the steps,
    then linear or cosine decay towards zero, or constant."""
    rise = round(warmup * steps)
    if step < rise:
        return (step + 1) / rise
    progress = (step - rise) / max(1, steps - rise)
    return {"linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress)), "constant": 1.0}[schedule]


def objective_of(config: FitConfig) -> Objective:
    """What a training minimises."""
    if isinstance(config, RewardConfig):
        return BradleyTerry(config.margin)
    assert isinstance(config, ObjectiveConfig)
    return Objective(config)


def train_steps(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    data: PairData,
    config: FitConfig,
    worker: Worker,
    layout: Layout,
    first_step: int = 0,
) -> Iterator[dict[str, float]]:
    """Train from ``first_step`` on, yielding one row of metrics after each optimizer step.

    ``model`` is a ``ResponseLogprobs`` in ``layout``, bare or wrapped for distributed training. Gradients are those
    of the mean loss over all pairs of the optimizer step, however the step is split into workers and micro-batches.

    Raises:
        NotFiniteError: the loss or the gradient is not finite.
    """
    steps = total_steps(len(data), config.batch_size, config.epochs)
    objective = objective_of(config)
    trainable = [p for p in model.parameters() if p.requires_grad]

    def load(step: int) -> StepData:
        batch = batch_indices(step, len(data), config.batch_size, config.epochs, config.seed)
        return load_step(data, batch, worker, layout, objective.needs_kl)

    with ThreadPoolExecutor(1) as ahead:  # reads the next step's pairs while this one's are computed with
        waiting = ahead.submit(load, first_step) if first_step < steps else None
        for step in range(first_step, steps):
            started = time.perf_counter()
            assert waiting is not None
            work = waiting.result()
            waiting = ahead.submit(load, step + 1) if step + 1 < steps else None
            torch.manual_seed(_step_seed(config.seed, step, worker.rank))
            rate = config.learning_rate * learning_rate_factor(step, steps, config.warmup, config.schedule)
            for group in optimizer.param_groups:
                group["lr"] = rate
            sums = accumulate(model, work, objective, worker)
            # The one time in a step that a card is waited for: the weights must not take what is not finite.
            means, (norm,) = sums.read(_clip(trainable, config.max_grad_norm))
            if not math.isfinite(means["loss"]):
                raise NotFiniteError(step + 1, "the loss is", sums.bad())
            if not math.isfinite(norm):
                raise NotFiniteError(step + 1, "the gradient is", ())
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            seconds = time.perf_counter() - started
            yield {
                "step": step + 1,
                "steps": steps,
                "epoch": min((step + 1) * config.batch_size / len(data), config.epochs),
                **means,
                "grad_norm": norm,
                "learning_rate": rate,
                "tokens_per_second": means["tokens"] / seconds,
                "seconds": seconds,
            }


def _clip(parameters: Sequence[torch.nn.Parameter], largest: float) -> torch.Tensor:
    """Scale the gradient down to a norm of ``largest``; returns its norm before, where it was worked out."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, largest)
    whole: torch.Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # sharded parameters
    return whole


def _step_seed(seed: int, step: int, rank: int) -> int:
    """Randomness (an adapter's dropout) depends on the step and the worker alone, so that nothing of it needs to be
    saved and workers draw different masks."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)
