"""Progress that remote workers report while the driver waits for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

Progress = tuple[int, int, str]


class Board:
    """Holds the newest report."""

    def __init__(self) -> None:
        self._latest: Progress | None = None
        self._failure: str | None = None

    def post(self, done: int, total: int, note: str) -> None:
        self._latest = (done, total, note)

    def fail(self, reason: str) -> None:
        self._failure = self._failure or reason

    def failure(self) -> str | None:
        """Why the work was abandoned, if it was."""
        return self._failure

    def latest(self) -> Progress | None:
        return self._latest


class Reporter:
    """A worker's way to report progress, called like the driver's."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __call__(self, done: int, total: int, note: str) -> None:
        self._actor.post.remote(done, total, note)


def here() -> NodeAffinitySchedulingStrategy:
    """For work that has to be done on the driver's machine."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


@contextmanager
def board(report: Callable[[int, int, str], None], seconds: float = 0.5) -> Iterator[Any]:
    """An actor to hand to workers: what they ``post`` to it is passed on to ``report`` until the block ends."""
    actor = ray.remote(num_cpus=0, scheduling_strategy=here())(Board).remote()  # so not lost with another machine
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(seconds):
            try:
                latest = ray.get(actor.latest.remote(), timeout=10)
            except ray.exceptions.GetTimeoutError:
                continue
            except ray.exceptions.RayError:
                return
            if latest is not None:
                report(*latest)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield actor
    finally:
        stop.set()
        thread.join()
        ray.kill(actor)
