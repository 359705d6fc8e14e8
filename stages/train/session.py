"""What every training worker runs, whoever started it."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
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
from stages.policy.load import device_of_worker, product_precision
from stages.train import checkpoints, proof
from stages.train.arguments import Arguments
from stages.train.checkpoints import TrainState
from stages.train.config import TrainConfig
from stages.train.gradients import MicroBatchError
from stages.train.latest import newest
from stages.train.loop import NotFiniteError, train_steps
from stages.train.policy import build_optimizer, build_policy, rebuild_policy, save_policy, without_dropout
from stages.train.sharding import distribute, is_sharded, shards, whole_weights
from stages.train.worker import Worker

_NAMED = 10
"""Pairs that an error names."""


class Session(Protocol):
    """A worker's place among the others, and where its checkpoints go."""

    @property
    def rank(self) -> int: ...
    @property
    def world(self) -> int: ...
    def latest(self) -> AbstractContextManager[Path | None]:
        """The session's own newest checkpoint."""
        ...

    def report(self, step: int, checkpoint: Path | None) -> None:
        """A step is done, and its checkpoint (this worker's part of it) is in a folder that the session may take; what
        it leaves is deleted."""
        ...


def train_worker(arguments: Arguments, session: Session) -> None:
    """Train from the newest checkpoint to the end; the last checkpoint also holds the finished policy."""
    config, resources, progress = arguments.config, arguments.resources, arguments.progress
    sys.path += [path for path in arguments.importable if path not in sys.path]
    if ray.get(progress.failure.remote()) is not None:
        return  # started again after a worker gave up for a reason that would be the same again
    paths = {name: Path(path) for name, path in arguments.paths.items()}
    keep_freed_memory()
    torch.set_num_threads(arguments.cpus)
    torch.manual_seed(config.seed)
    device, sharded = device_of_worker(), shards(resources.strategy, session.world)
    policy = build_policy(config, paths["policy"], torch.device("cpu") if sharded else device)
    layout = choose_layout(policy, config.layout)
    precision = product_precision(config.precision, device)
    bare = ResponseLogprobs(freeze(policy, precision), layout, precision, resources.checkpointing)
    without_dropout(bare)
    model = distribute(bare, resources.strategy, device)
    optimizer = build_optimizer([p for p in model.parameters() if p.requires_grad], config)
    state = TrainState(bare, optimizer, 0, [])
    with session.latest() as own:
        if (folder := newest([own, arguments.start])) is not None:
            state = checkpoints.load(folder, bare, optimizer)
            print(f"continued from step {state.step}", flush=True)
    worker = Worker(session.rank, session.world, device, resources.micro_batch_tokens, _all_sum, sharded)
    data = ShardData(paths["shards"], paths.get("reference"))
    with _given_up(progress, resources):
        for row in train_steps(model, optimizer, data, config, worker, layout, state.step):
            state.step = int(row["step"])
            state.metrics.append(row)
            if session.rank == 0:
                note = f"loss {row['loss']:.3f}, accuracy {row['reward_accuracy']:.2f}"
                progress.post.remote(state.step, int(row["steps"]), note)
            last = state.step == row["steps"]
            if last or state.step % resources.checkpoint_every == 0:
                save = partial(_save, session, bare, data, config, paths["policy"], sharded) if last else None
                _report(session, state, Path(arguments.scratch), save)


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


def _save(
    session: Session, trained: ResponseLogprobs, data: ShardData, config: TrainConfig, initial: Path, sharded: bool,
    folder: Path,
) -> None:  # fmt: skip
    """The finished policy, by worker 0; all workers have to call it."""
    weights = whole_weights(trained.model) if sharded else {}
    if session.rank == 0:
        trained.release()
        whole = rebuild_policy(config, initial, weights) if sharded else trained.model
        save_policy(whole, config, initial, folder, lambda model: proof.write(model, data, folder))


def _report(session: Session, state: TrainState, scratch: Path, save: Callable[[Path], None] | None) -> None:
    """Hand in a checkpoint; the last one also holds the finished policy, which ``save`` writes.

    What several workers hand in is put together, and a checkpoint counts when all have done so.
    """
    if session.rank != 0 and not is_sharded(state.model):
        session.report(state.step, None)
        return
    with tempfile.TemporaryDirectory(dir=scratch, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        checkpoints.save(state, folder)
        if save is not None:
            save(folder)
        session.report(state.step, folder)
