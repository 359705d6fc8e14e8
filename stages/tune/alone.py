"""A trial with one worker trains in its own process, which keeps the base model for the next trial."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from stages.base import StageError, TrainResources
from stages.core.forward.layout import choose_layout
from stages.core.forward.logprobs import ResponseLogprobs, freeze
from stages.io.allocator import give_back_memory
from stages.io.artifact import Artifact
from stages.policy.load import device_of_worker, load_policy, product_precision
from stages.train.arguments import Arguments
from stages.train.bases import Bases
from stages.train.config import TrainConfig
from stages.train.session import train_worker
from stages.train.worker import Worker
from stages.tune.measure import HeldOut

_bases = Bases()


class _Session:
    """The only worker, which tells Ray Tune itself."""

    rank, world, abandoned = 0, 1, False

    def __init__(self, told: Callable[[list[dict[str, float]]], None]) -> None:
        self._told = told

    def abandon(self, reason: str) -> None:
        raise StageError(reason)

    def post(self, step: int, steps: int, note: str) -> None:
        pass

    def kept(self, step: int) -> None:
        pass

    def measured(self, rows: list[dict[str, float]]) -> None:
        self._told(rows)


def train(arguments: Arguments, told: Callable[[list[dict[str, float]]], None]) -> None:
    """Train to the end."""
    loads = _bases.loads
    try:
        train_worker(arguments, _Session(told), _bases)
    finally:
        # For those who look into the log whether trials share what they can.
        print(f"base model {'loaded' if _bases.loads > loads else 'kept'}", flush=True)
        give_back_memory()


@torch.no_grad()
def measure(
    policy: Artifact, config: TrainConfig, resources: TrainResources, cpus: int, heldout: HeldOut
) -> dict[str, Any]:
    """How a stored policy ranks the held-out pairs."""
    torch.set_num_threads(cpus)
    device = device_of_worker()
    precision = product_precision(config.precision, device)
    model = load_policy(policy.folder(), device).eval().requires_grad_(False)
    layout = choose_layout(model, config.layout)
    scorer = ResponseLogprobs(freeze(model, precision), layout, precision)
    found = heldout.measure(scorer, Worker(device=device, micro_batch_tokens=resources.least_tokens))
    scorer.release()
    return found
