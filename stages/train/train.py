"""DPO training: full or with an adapter, one or many workers, continued after a crash."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from stages.base import StageError, Summary, TrainResources
from stages.core.metrics import BY_TASK
from stages.io import nodes
from stages.io.artifact import Artifact
from stages.io.board import board
from stages.io.context import StageContext
from stages.io.filenames import METRICS
from stages.io.parts import call
from stages.train import single
from stages.train.arguments import POLICY, Arguments
from stages.train.config import TrainConfig


def run(config: TrainConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Train; the artifact's only part has ``model``, ``adapter`` (if one is trained) and ``metrics.jsonl``.

    One worker is a process of its own (``single``), several are Ray Train's (``distributed``). Checkpoints are kept in
    the store (``kept``): started again, also on other machines or with another number of workers, it goes on from the
    last.

    Raises:
        StageError: the loss or the gradient is no longer finite, the workers were lost too often, or the stored policy
            is not the one that was trained.
    """
    output, resources = context.output, context.resources
    assert isinstance(resources, TrainResources)
    if POLICY not in output.done():
        cpus = nodes.cpus_per_worker(resources, nodes.for_workers(resources))
        with board(context.progress) as progress:
            arguments = Arguments(config, resources, cpus, dict(inputs), output, progress, tuple(sys.path))
            fit(arguments)
    part = output.done()[POLICY]
    output.parts.append(part)
    policy = Artifact(output.store, output.fingerprint, "", (part,))
    given = policy, inputs["policy"], inputs["shards"]
    proved: dict[str, float] = call("stages.train.proof:check", *given, resources=resources)
    metrics = policy.path(METRICS).read_text(encoding="utf-8").splitlines()
    return {**summarise([json.loads(line) for line in metrics]), **proved}


def fit(arguments: Arguments, callbacks: Sequence[Any] = (), inner: Sequence[Any] = ()) -> None:
    """Train to the end; ``callbacks`` and ``inner`` are those of several workers (``distributed.fit``).

    Raises:
        StageError: the workers gave a reason why they cannot go on, or were lost too often.
    """
    progress = arguments.progress
    try:
        if arguments.resources.worker_range == (1, 1):
            single.fit(arguments)
        else:
            from stages.train import distributed  # here, since the driver of a single worker does without torch

            distributed.fit(arguments, callbacks, inner)
    except StageError as error:
        if (reason := ray.get(progress.failure.remote())) is None:
            raise
        raise StageError(reason) from error
    if (reason := ray.get(progress.failure.remote())) is not None:
        raise StageError(reason)


def summarise(metrics: list[dict[str, float]]) -> Summary:
    """The first loss, and the means over the last fifth of the steps (one step alone is noise), also by task."""
    last = metrics[-max(1, len(metrics) // 5) :]
    wanted = ("loss", "reward_accuracy", "reward_margin", "kl")
    means = {name: _mean(last, name, "pairs") for name in wanted if name in metrics[0]}
    tasks = sorted({name[5:-6] for row in last for name in row if name.startswith("task/") and name.endswith("/pairs")})
    by_task = {
        task: {name: _mean(last, f"task/{task}/{name}", f"task/{task}/pairs") for name in BY_TASK} for task in tasks
    }
    return {"steps": len(metrics), "first_loss": metrics[0]["loss"], **means, **({"tasks": by_task} if tasks else {})}


def _mean(rows: Sequence[Mapping[str, float]], name: str, count: str) -> float:
    """Mean over the pairs of some steps; a step may have none of a task."""
    total = sum(row.get(count, 0.0) for row in rows)
    return sum(row.get(name, 0.0) * row.get(count, 0.0) for row in rows) / total
