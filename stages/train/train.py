"""DPO training: full or with an adapter, one or many workers, continued after a crash."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import ray

from stages.base import Artifact, StageContext, StageError, Summary, TrainResources
from stages.core.metrics import BY_TASK
from stages.io.board import board
from stages.io.filenames import ADAPTER, CHAT, METRICS, MODEL
from stages.io.parts import call
from stages.train import single
from stages.train.arguments import Arguments
from stages.train.config import TrainConfig
from stages.train.latest import newest, of_ray_train, of_single


def run(config: TrainConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Train; the artifact holds ``model``, ``adapter`` (if it trains one) and ``metrics.jsonl``.

    One worker is a process of its own (``single``), several are Ray Train's (``distributed``). Checkpoints live in
    ``context.work``: started again there, also with another number of workers, it goes on from the last.

    Raises:
        StageError: the loss or the gradient is no longer finite, the workers were lost too often, or the stored policy
            is not the one that was trained.
    """
    resources = context.resources
    assert isinstance(resources, TrainResources)
    cpus = resources.cpus_per_worker(ray.cluster_resources().get("CPU", 1))
    with board(context.progress) as progress:
        arguments = Arguments(
            config, resources, cpus, {name: str(artifact.path) for name, artifact in inputs.items()}, progress,
            str(context.work), tuple(sys.path), newest([*of_single(context.work), of_ray_train(context.work)]),
        )  # fmt: skip
        try:
            folder = _fit(arguments, context.work)
        except StageError as error:
            if (reason := ray.get(progress.failure.remote())) is not None:
                raise StageError(reason) from error
            raise
        if (reason := ray.get(progress.failure.remote())) is not None:
            raise StageError(reason)
    for name in (MODEL, ADAPTER, METRICS):
        if (path := folder / name).exists():
            (shutil.copytree if path.is_dir() else shutil.copyfile)(path, context.output / name)
    if (chat := inputs["policy"].path / CHAT).is_file():
        shutil.copyfile(chat, context.output / CHAT)
    stored = [str(path) for path in (context.output, inputs["policy"].path, inputs["shards"].path, folder)]
    difference = call("stages.train.proof:check", *stored, gpus=resources.gpus)
    summary = summarise([json.loads(line) for line in (context.output / METRICS).read_text().splitlines()])
    return {**summary, "stored_difference": difference}


def _fit(arguments: Arguments, work: Path) -> Path:
    if arguments.resources.worker_range == (1, 1):
        return single.fit(arguments, work)
    from stages.train import distributed  # here, since the driver of a single worker does without torch

    return distributed.fit(arguments, work)


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
