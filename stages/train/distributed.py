"""Training with several workers, or a range of them, by Ray Train."""

from __future__ import annotations

import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from stages.base import StageError, TrainResources
from stages.train.arguments import Arguments
from stages.train.session import train_worker
from stages.train.single import Alone


def fit(arguments: Arguments, callbacks: Sequence[Any] = (), inner: Sequence[Any] = ()) -> None:
    """Train to the end. Checkpoints go to the store without Ray Train (``kept``), so that one worker and several
    continue each other's; what it writes down itself is of no use to a later run.

    Args:
        callbacks: Ray Train's, told of what workers report.
        inner: those that Ray Train has for itself, told of its workers.

    Raises:
        StageError: a worker failed, or the workers were lost too often.
    """
    resources = arguments.resources
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        trainer = _Trainer(
            distributed_worker,
            train_loop_config={"arguments": arguments},
            torch_config=TorchConfig(backend=backend(resources)),
            scaling_config=scaling(resources, arguments.cpus),
            run_config=ray.train.RunConfig(
                name="ray-train",
                storage_path=scratch,
                failure_config=ray.train.FailureConfig(max_failures=resources.max_failures),
                callbacks=list(callbacks) or None,
            ),
        )
        trainer.inner = inner
        try:
            with own_interrupts():
                trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise _plain(error) from error


class _Trainer(TorchTrainer):  # type: ignore[misc]  # ray has no types
    """Without Ray Train's cleaner of placement groups: it asks Ray's dashboard every second whether the controller
    lives, and this cluster has no dashboard (and ends with the driver), so it would log a warning every second."""

    inner: Sequence[Any] = ()

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        kept = [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]
        return [*kept, *self.inner]


def scaling(resources: TrainResources, cpus: int) -> ray.train.ScalingConfig:
    """What Ray Train is asked for: with a range of workers it starts as many as there is room for, and anew from the
    last checkpoint when that changes."""
    per_worker = {"CPU": cpus, "GPU": resources.gpus, "memory": resources.memory_bytes}
    fewest, most = resources.worker_range
    return ray.train.ScalingConfig(
        num_workers=most if fewest == most else (fewest, most),
        use_gpu=resources.gpus > 0,
        resources_per_worker={name: amount for name, amount in per_worker.items() if amount},
        accelerator_type=resources.accelerator_type,
        label_selector=resources.label_selector or None,
    )


def backend(resources: TrainResources) -> str | None:
    """How the workers talk to each other: by what Ray Train takes, nccl between GPUs and gloo between CPUs. With
    ``offload`` by both, since what lies in main memory is brought together, too: checkpoints, policies, norms."""
    return "cpu:gloo,cuda:nccl" if resources.offload else None


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


def _plain(error: Exception) -> StageError:
    """The worker's own reason, out of Ray's wrapping."""
    reasons = getattr(error, "worker_failures", {}) or {}
    causes = [getattr(reason, "_base_exc", reason) for reason in reasons.values()]
    first = causes[0] if causes else error
    return StageError(str(first).strip().splitlines()[-1] if str(first).strip() else repr(first))


def distributed_worker(config: dict[str, Any]) -> None:
    """What every Ray Train worker runs."""
    if torch.cuda.is_available():  # the workers of a machine see all its GPUs
        torch.cuda.set_device(get_device())
    arguments = config["arguments"]
    train_worker(arguments, RayTrainSession(arguments.progress, tuned=arguments.watch is not None))


class RayTrainSession(Alone):
    """This process as one of Ray Train's workers; ``tuned`` as one of a trial's, of which Ray Tune gets to see what was
    measured and nothing else."""

    def __init__(self, progress: Any, tuned: bool) -> None:
        super().__init__(progress)
        self._tuned = tuned
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()

    def kept(self, step: int) -> None:
        """Waits for the other workers."""
        if not self._tuned:
            ray.train.report({"step": step})

    def measured(self, rows: list[dict[str, float]]) -> None:
        """Waits for the other workers."""
        ray.train.report({"rows": rows})
