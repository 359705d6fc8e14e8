"""Training with one worker: a process of its own, without what Ray Train needs to bring several together.

Ray starts the process anew when it is lost, up to ``resources.train.max_failures`` times.
"""

from __future__ import annotations

from typing import Any

import ray

from stages.base import StageError
from stages.io import cache
from stages.io.allocator import give_back_memory
from stages.train.arguments import Arguments


def fit(arguments: Arguments) -> None:
    """Train to the end.

    Raises:
        StageError: the process failed, or was lost too often.
    """
    resources = arguments.resources
    task = ray.remote(
        **resources.options(arguments.cpus),
        max_retries=resources.max_failures,
        max_calls=1 if resources.gpus else 0,  # a device's memory is free only when the process has ended
    )(single_worker)
    running = task.remote(arguments)
    try:
        ray.get(running)
    except ray.exceptions.RayTaskError as error:
        raise StageError(reason(error)) from error
    except ray.exceptions.RayError as error:
        lost = f"the training worker was lost {resources.max_failures + 1} times (resources.train.max_failures)"
        raise StageError(f"{lost}: {reason(error)}") from error
    except KeyboardInterrupt:
        ray.cancel(running, force=True)
        raise


def reason(error: BaseException) -> str:
    """The worker's own words, out of Ray's wrapping; of an error that is not a stage's own with its type."""
    inner = getattr(error, "cause", None) or error
    if isinstance(inner, StageError):
        return str(inner)
    lines = str(inner).strip().splitlines() or [""]
    return lines[-1] if isinstance(inner, ray.exceptions.RayError) else f"{type(inner).__name__}: {lines[-1]}"


def single_worker(arguments: Arguments) -> None:
    from stages.train.session import train_worker  # here, since the driver does without torch

    try:
        train_worker(arguments, Alone(arguments.progress))
    finally:
        cache.release()
        give_back_memory()


class Alone:
    """The only worker."""

    rank, world = 0, 1

    def __init__(self, progress: Any) -> None:
        self._progress = progress

    @property
    def abandoned(self) -> bool:
        return ray.get(self._progress.failure.remote()) is not None

    def abandon(self, reason: str) -> None:
        ray.get(self._progress.fail.remote(reason))

    def post(self, step: int, steps: int, note: str) -> None:
        self._progress.post.remote(step, steps, note)

    def kept(self, step: int) -> None:
        pass

    def measured(self, rows: list[dict[str, float]]) -> None:
        pass
