"""What every training worker runs, whoever started it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import ray
import torch
from torch import Tensor

from stages.base import TrainResources
from stages.core.forward.logprobs import ResponseLogprobs, choose_layout, freeze
from stages.core.losses.objective import UserFunctionError
from stages.data.shards import ShardData
from stages.io.allocator import keep_freed_memory
from stages.io.filenames import CHAT, METRICS
from stages.io.parts import make_importable
from stages.policy.load import device_of_worker, product_precision
from stages.train import checkpoints, proof
from stages.train.arguments import POLICY, Arguments
from stages.train.checkpoints import TrainState
from stages.train.gradients import MicroBatchError
from stages.train.kept import Kept
from stages.train.loop import NotFiniteError, train_steps
from stages.train.policy import build_optimizer, build_policy, rebuild_policy, save_policy, without_dropout
from stages.train.sharding import distribute, shards, whole_weights
from stages.train.worker import Worker

_NAMED = 10
"""Pairs that an error names."""


class Session(Protocol):
    """A worker's place among the others."""

    @property
    def rank(self) -> int: ...
    @property
    def world(self) -> int: ...
    def report(self, step: int) -> None:
        """A step is done and kept; waits for the other workers."""
        ...


def train_worker(arguments: Arguments, session: Session) -> None:
    """Train from the newest checkpoint to the end, and write the finished policy."""
    config, resources, progress = arguments.config, arguments.resources, arguments.progress
    make_importable(arguments.importable)
    if ray.get(progress.failure.remote()) is not None:
        return  # started again after a worker gave up for a reason that would be the same again
    inputs, kept = arguments.inputs, Kept(arguments.output)
    initial = inputs["policy"].folder()
    keep_freed_memory()
    torch.set_num_threads(arguments.cpus)
    torch.manual_seed(config.seed)
    device, sharded = device_of_worker(), shards(resources.strategy, session.world)
    policy = build_policy(config, initial, torch.device("cpu") if sharded else device)
    layout = choose_layout(policy, config.layout)
    precision = product_precision(config.precision, device)
    bare = ResponseLogprobs(freeze(policy, precision), layout, precision, resources.checkpointing)
    without_dropout(bare)
    model = distribute(bare, resources.strategy, device)
    optimizer = build_optimizer([p for p in model.parameters() if p.requires_grad], config)
    state = TrainState(bare, optimizer, 0, [])
    if (folder := kept.newest()) is not None:
        state = checkpoints.load(folder, bare, optimizer)
        print(f"continued from step {state.step}", flush=True)
    worker = Worker(session.rank, session.world, device, resources.micro_batch_tokens, _all_sum, sharded)
    data = ShardData(inputs["shards"], inputs.get("reference"))
    with _given_up(progress, resources):
        for row in train_steps(model, optimizer, data, config, worker, layout, state.step):
            state.step = int(row["step"])
            state.metrics.append(row)
            if session.rank == 0:
                note = f"loss {row['loss']:.3f}, accuracy {row['reward_accuracy']:.2f}"
                progress.post.remote(state.step, int(row["steps"]), note)
            if state.step == row["steps"] or state.step % resources.checkpoint_every == 0:
                if sharded or session.rank == 0:
                    kept.keep(state.step, partial(checkpoints.save, state), together=sharded)
                session.report(state.step)
    _finish(session, state, data, arguments, initial, sharded)


@contextmanager
def _given_up(progress: Any, resources: TrainResources) -> Iterator[None]:
    """Leave the reason for the driver when training cannot go on, where trying again would end the same way.

    The error is raised all the same, since other workers may be waiting for this one: Ray Train then ends them all,
    and the workers that it starts anew find the reason and stop.
    """
    try:
        yield
    except (NotFiniteError, MicroBatchError, UserFunctionError) as error:
        ray.get(progress.fail.remote(explain(error, resources)))
        raise


def explain(error: Exception, resources: TrainResources) -> str:
    """What went wrong and what to do about it."""
    if isinstance(error, MicroBatchError):
        return (
            f"{error}; lower resources.train.micro_batch_tokens ({resources.micro_batch_tokens}), "
            "set resources.train.checkpointing: true, or lower prepare.max_length"
        )
    if isinstance(error, NotFiniteError):
        named = f" for the pairs {', '.join(error.pairs[:_NAMED])}" if error.pairs else ""
        more = f" and {len(error.pairs) - _NAMED} more" if len(error.pairs) > _NAMED else ""
        return f"{error}{named}{more}; lower train.learning_rate, or use train.precision: fp32"
    return str(error)


def _all_sum(value: Tensor) -> Tensor:
    if torch.distributed.is_initialized():
        value = value.to(device_of_worker())
        torch.distributed.all_reduce(value)
    return value.cpu()


def _finish(
    session: Session, state: TrainState, data: ShardData, arguments: Arguments, initial: Path, sharded: bool
) -> None:
    """Worker 0 writes the finished policy; all workers have to call this."""
    trained, config = state.model, arguments.config
    assert isinstance(trained, ResponseLogprobs)
    weights = whole_weights(trained.model) if sharded else {}
    if session.rank != 0:
        return
    with arguments.output.part(POLICY) as part:
        trained.release()
        whole = rebuild_policy(config, initial, weights) if sharded else trained.model
        save_policy(whole, config, initial, part.folder, lambda model: proof.write(model, data, part.folder))
        if (chat := initial / CHAT).is_file():
            shutil.copyfile(chat, part.folder / CHAT)
        lines = "".join(json.dumps(row) + "\n" for row in state.metrics)
        (part.folder / METRICS).write_text(lines, encoding="utf-8")
