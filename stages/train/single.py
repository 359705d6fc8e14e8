"""Training with one worker: a process of its own, without what Ray Train needs to bring several together.

Ray starts the process anew when it is lost, up to ``resources.train.max_failures`` times.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from stages.base import StageError
from stages.io.allocator import give_back_memory
from stages.train.arguments import Arguments
from stages.train.latest import SINGLE, newest, of_single

_KEPT = 2
"""Checkpoints that are kept."""


def fit(arguments: Arguments, work: Path) -> Path:
    """Train to the end; returns the last checkpoint.

    Raises:
        StageError: the process failed, or was lost too often.
    """
    resources = arguments.resources
    task = ray.remote(
        num_cpus=arguments.cpus,
        num_gpus=resources.gpus,
        max_retries=resources.max_failures,
        max_calls=1 if resources.gpus else 0,  # a device's memory is free only when the process has ended
    )(single_worker)
    running = task.remote(arguments, work)
    try:
        ray.get(running)
    except ray.exceptions.RayTaskError as error:
        raise StageError(_reason(error)) from error
    except ray.exceptions.RayError as error:
        lost = f"the training worker was lost {resources.max_failures + 1} times (resources.train.max_failures)"
        raise StageError(f"{lost}: {_reason(error)}") from error
    except KeyboardInterrupt:
        ray.cancel(running, force=True)
        raise
    last = newest(of_single(work))
    assert last is not None
    return last


def _reason(error: BaseException) -> str:
    """The worker's own words, out of Ray's wrapping."""
    inner = getattr(error, "cause", None) or error
    lines = str(inner).strip().splitlines()
    return lines[-1] if lines else repr(inner)


def single_worker(arguments: Arguments, work: Path) -> None:
    from stages.train.session import train_worker  # here, since the driver does without torch

    try:
        train_worker(arguments, SingleSession(work))
    finally:
        give_back_memory()


class SingleSession:
    """The only worker; its checkpoints are folders in ``work/checkpoints``, named by their step."""

    rank, world = 0, 1

    def __init__(self, work: Path) -> None:
        self._work = work

    @contextmanager
    def latest(self) -> Iterator[Path | None]:
        yield newest(of_single(self._work))

    def report(self, step: int, checkpoint: Path | None) -> None:
        """A whole folder gets its name at once, so that none is ever read half written."""
        assert checkpoint is not None
        folder = self._work / SINGLE
        folder.mkdir(exist_ok=True)
        checkpoint.rename(folder / f"step-{step:08d}")
        for old in of_single(self._work)[:-_KEPT]:
            shutil.rmtree(old)
