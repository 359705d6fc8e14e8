"""Workers that have several tasks in hand at the same time, such as generation engines.

A class with a method ``stream(take)`` instead of ``__call__``: it takes tasks when it has room for them, and gives each
task that it is done with, together with what writes its part.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from stages.io.artifact import Part
from stages.io.output import Output, PartWriter

Task = Mapping[str, Any]
"""What a worker needs to know to make one part: plain values; ``part`` is the part's name, ``rows`` how many rows it is
made from."""
Take = Callable[[bool], Task | None]
"""The next task, or None: there is none now or, asked to wait, there will be none."""
Write = Callable[[PartWriter], None]


class Streaming(Protocol):
    def stream(self, take: Take) -> Iterator[tuple[Task, Write]]: ...


def streamed(mapper: Streaming, take: Take, output: Output) -> Iterator[Part]:
    """The parts of a streaming worker."""
    written: deque[Future[Part]] = deque()
    for _, part in _written(mapper, take, output):
        written.append(part)
        while written and written[0].done():
            yield written.popleft().result()
    for part in written:
        yield part.result()


def _written(mapper: Streaming, take: Take, output: Output) -> Iterator[tuple[Task, Future[Part]]]:
    """Every task with its part, which is being written beside the worker's work."""

    def make(task: Task, write: Write) -> Part:
        with output.writer(task["part"]) as part:
            write(part)
        return part.made

    with ThreadPoolExecutor(1) as writing:
        for task, write in mapper.stream(take):
            yield task, writing.submit(make, task, write)


def taken_from(tasks: Iterable[Task]) -> Take:
    """All the tasks there are, one after the other."""
    left = iter(tasks)
    return lambda _: next(left, None)


def _again(error: BaseException) -> BaseException:
    """The same error for one more that waits: Ray writes into each that is raised."""
    try:
        another = copy(error)
    except Exception:  # it is not made of its arguments alone
        another = RuntimeError(f"{type(error).__name__}: {error}")
    another.__cause__ = error
    return another


class Shared:
    """A streaming worker that many threads call, each for the part of one task."""

    def __init__(self, mapper: Streaming, output: Output) -> None:
        self._mapper, self._output = mapper, output
        self._asked: SimpleQueue[Task] = SimpleQueue()
        self._parts: dict[str, Future[Part]] = {}
        self._failure: BaseException | None = None
        threading.Thread(target=self._work, daemon=True).start()

    def __call__(self, task: Task) -> Part:
        part = self._parts[task["part"]] = Future()
        self._asked.put(task)
        if self._failure is not None:
            raise _again(self._failure)
        return part.result()

    def _take(self, wait: bool) -> Task | None:
        try:
            return self._asked.get(wait)
        except Empty:
            return None

    def _hand_over(self, name: str, part: Future[Part]) -> None:
        waiting = self._parts.pop(name)
        if (error := part.exception()) is not None:
            waiting.set_exception(_again(error))
        else:
            waiting.set_result(part.result())

    def _work(self) -> None:
        try:
            for task, part in _written(self._mapper, self._take, self._output):
                part.add_done_callback(partial(self._hand_over, task["part"]))
        except BaseException as error:
            self._failure = error
            for waiting in list(self._parts.values()):
                waiting.set_exception(_again(error))  # Ray writes into each that is raised
