"""Distributed DPO training with Ray Train: full or LoRA, one or many workers, continued after a crash."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train.torch import TorchTrainer, get_device
from torch import Tensor

from stages.base import Artifact, StageContext, StageError, Summary, TrainResources
from stages.core.forward.logprobs import ResponseLogprobs, choose_layout, freeze
from stages.core.losses.objective import UserFunctionError
from stages.core.metrics import BY_TASK
from stages.data.shards import ShardData
from stages.io.allocator import keep_freed_memory
from stages.io.board import board
from stages.io.filenames import ADAPTER, METRICS, MODEL
from stages.policy.load import device_of_worker
from stages.train import checkpoints
from stages.train.checkpoints import TrainState
from stages.train.config import TrainConfig
from stages.train.gradients import MicroBatchError
from stages.train.loop import NotFiniteError, train_steps
from stages.train.policy import build_optimizer, build_policy, rebuild_policy, save_policy, without_dropout
from stages.train.sharding import distribute, is_sharded, shards, whole_weights
from stages.train.worker import Worker

_RUN = "ray-train"
_NAMED = 10
"""Pairs that an error names."""


def run(config: TrainConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Train; the artifact holds ``model``, ``adapter`` (if it trains one) and ``metrics.jsonl``.

    The Ray Train run lives in ``context.work``: started again there, it goes on from its last checkpoint.

    Raises:
        StageError: the loss or the gradient is no longer finite, or the workers were lost too often.
    """
    resources = context.resources
    assert isinstance(resources, TrainResources)
    _forget_torn_state(context.work / _RUN)
    cpus = resources.cpus_per_worker(ray.cluster_resources().get("CPU", 1))
    with board(context.progress) as progress:
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={
                "config": config,
                "resources": resources,
                "cpus": cpus,
                "paths": {name: str(artifact.path) for name, artifact in inputs.items()},
                "progress": progress,
                "scratch": str(context.work),
                "importable": list(sys.path),
            },
            scaling_config=scaling(resources, cpus),
            run_config=ray.train.RunConfig(
                name=_RUN,
                storage_path=str(context.work),
                failure_config=ray.train.FailureConfig(max_failures=resources.max_failures),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            ),
        )
        try:
            with own_interrupts():
                result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            if (reason := ray.get(progress.failure.remote())) is not None:
                raise StageError(reason) from error
            raise _plain(error) from error
        if (reason := ray.get(progress.failure.remote())) is not None:
            raise StageError(reason)
    assert result.checkpoint is not None
    with result.checkpoint.as_directory() as folder:
        for name in (MODEL, ADAPTER, METRICS):
            if (path := Path(folder) / name).exists():
                (shutil.copytree if path.is_dir() else shutil.copyfile)(path, context.output / name)
    return summarise([json.loads(line) for line in (context.output / METRICS).read_text().splitlines()])


def scaling(resources: TrainResources, cpus: int) -> ray.train.ScalingConfig:
    """What Ray Train is asked for: with a range of workers it starts as many as there is room for, and anew from the
    last checkpoint when that changes."""
    per_worker: dict[str, float] = {"CPU": cpus} | ({"GPU": resources.gpus} if resources.gpus else {})
    fewest, most = resources.worker_range
    return ray.train.ScalingConfig(
        num_workers=most if fewest == most else (fewest, most),
        use_gpu=resources.gpus > 0,
        resources_per_worker=per_worker,
    )


@contextmanager
def own_interrupts() -> Iterator[None]:
    """Keep Ctrl-C what it is: Ray Train installs a handler that ends the process with exit code 0, for good."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if main:
            signal.signal(signal.SIGINT, before)


def _forget_torn_state(run: Path) -> None:
    """Ray Train rewrites its snapshot in place; one that was cut short by a kill would fail every later start."""
    snapshot = run / "checkpoint_manager_snapshot.json"
    if not snapshot.exists():
        return
    try:
        json.loads(snapshot.read_text(encoding="utf-8"))
    except ValueError:
        print(f"{snapshot} was cut short; training starts from the beginning", flush=True)
        shutil.rmtree(run)


def _plain(error: Exception) -> StageError:
    """The worker's own reason, out of Ray's wrapping."""
    reasons = getattr(error, "worker_failures", {}) or {}
    causes = [getattr(reason, "_base_exc", reason) for reason in reasons.values()]
    first = causes[0] if causes else error
    return StageError(str(first).strip().splitlines()[-1] if str(first).strip() else repr(first))


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


# In the workers


def train_worker(arguments: dict[str, Any]) -> None:
    """What every Ray Train worker runs."""
    config: TrainConfig = arguments["config"]
    resources: TrainResources = arguments["resources"]
    progress = arguments["progress"]
    # Ray's workers know the current folder, but not that of the spec, where the user's own losses stand.
    sys.path += [path for path in arguments["importable"] if path not in sys.path]
    if ray.get(progress.failure.remote()) is not None:
        return  # started again after a worker gave up for a reason that would be the same again
    paths = {name: Path(path) for name, path in arguments["paths"].items()}
    rank, world = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    keep_freed_memory()
    torch.set_num_threads(arguments["cpus"])
    torch.manual_seed(config.seed)
    if torch.cuda.is_available():  # the workers of a machine see all its GPUs
        torch.cuda.set_device(get_device())
    device, sharded = device_of_worker(), shards(resources.strategy, world)
    policy = build_policy(config, paths["policy"], torch.device("cpu") if sharded else device)
    layout = choose_layout(policy, config.layout)
    bare = ResponseLogprobs(freeze(policy, config.precision), layout, config.precision, resources.checkpointing)
    without_dropout(bare)
    model = distribute(bare, resources.strategy, device)
    optimizer = build_optimizer([p for p in model.parameters() if p.requires_grad], config)
    state = TrainState(bare, optimizer, 0, [])
    if (checkpoint := ray.train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as folder:
            state = checkpoints.load(Path(folder), bare, optimizer)
        print(f"continued from step {state.step}", flush=True)
    worker = Worker(rank, world, device, resources.micro_batch_tokens, _all_sum, sharded)
    data = ShardData(paths["shards"], paths.get("reference"))
    with _given_up(progress, resources):
        for row in train_steps(model, optimizer, data, config, worker, layout, state.step):
            state.step = int(row["step"])
            state.metrics.append(row)
            if rank == 0:
                note = f"loss {row['loss']:.3f}, accuracy {row['reward_accuracy']:.2f}"
                progress.post.remote(state.step, int(row["steps"]), note)
            last = state.step == row["steps"]
            if last or state.step % resources.checkpoint_every == 0:
                save = partial(_save, policy, config, paths["policy"], sharded) if last else None
                _report(state, Path(arguments["scratch"]), save)


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


def _save(policy: Any, config: TrainConfig, initial: Path, sharded: bool, folder: Path) -> None:
    """The finished policy, by worker 0; all workers have to call it."""
    weights = whole_weights(policy) if sharded else {}
    if ray.train.get_context().get_world_rank() == 0:
        whole = rebuild_policy(config, initial, weights) if sharded else policy
        save_policy(whole, config, initial, folder)


def _report(state: TrainState, scratch: Path, save: Callable[[Path], None] | None) -> None:
    """Hand a checkpoint to Ray Train; the last one also holds the finished policy, which ``save`` writes.

    Ray Train puts together what several workers hand in, and a checkpoint counts when all have done so.
    """
    if ray.train.get_context().get_world_rank() != 0 and not is_sharded(state.model):
        ray.train.report({"step": state.step})
        return
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        checkpoints.save(state, folder)
        if save is not None:
            save(folder)
        ray.train.report({"step": state.step}, checkpoint=ray.train.Checkpoint.from_directory(folder))
