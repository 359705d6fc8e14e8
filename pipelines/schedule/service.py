"""The service of a schedule: looks at the clock, sends each tick as a job, and tells of those that fail."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from clusters.background import Background
from clusters.job import JobSpec, JobStatus
from clusters.kinds import Launcher
from pipelines.run.execute import redacted
from pipelines.run.store import ArtifactStore
from pipelines.schedule import webhook
from pipelines.schedule.ledger import Ledger, clock, now
from pipelines.schedule.times import Times
from stages.base import StageError

_PARTING = 120.0
"""Seconds that a tick may take to end when the service ends."""
_LONGEST = 86_400.0
"""Seconds between two tries."""
_SAID = 500
"""Characters of a job's log that explain a failure."""


@dataclass(frozen=True)
class Patience:
    retry_after: float = 300
    """Seconds after the first failure; twice as many after each further one."""
    max_failures: int = 5
    lease: float = 60
    """Seconds after which a tick that another host has left is tried."""

    def pause(self, failures: int) -> float:
        return float(min(self.retry_after * 2 ** min(failures - 1, 20), _LONGEST))


@dataclass
class Service:
    """Ticks of one pipeline until it is told to stop, or too many have failed in a row.

    Every look compares this moment's time with the ledger in the store, so a clock that was set, a machine that was
    asleep and a service that was down all come to the same: the last due time has no tick yet, and gets one.
    """

    name: str
    times: Times
    store: ArtifactStore
    launcher: Launcher
    job: Callable[[datetime], JobSpec]
    """The tick that is due at a time."""
    say: Callable[[str], None]
    patience: Patience = Patience()
    url: str | None = None
    """Called when a tick fails."""
    poll: float = 1.0
    """Seconds between two looks."""
    stop: threading.Event = field(default_factory=threading.Event)
    _running: tuple[str, datetime] | None = None
    _sent: datetime = field(default_factory=now)
    _last: datetime = field(default_factory=now)
    """The last due time that needs nothing more."""
    _again: datetime | None = None
    """A due time whose tick failed or was left."""
    _not_before: datetime = field(default_factory=now)
    _failures: int = 0

    def run(self) -> int:
        """Returns the exit code: 0 it was told to stop, 1 too many ticks failed."""
        self._begin()
        with _signals(self.stop):
            while not self.stop.is_set():
                if self._failures >= self.patience.max_failures:
                    self.say(f"{self._failures} ticks failed in a row: the schedule of {self.name} stops")
                    return 1
                try:
                    self._look()
                except (StageError, OSError) as error:
                    self._failed(None, str(error), {})
                    self.stop.wait(self.patience.pause(self._failures))
                self.stop.wait(self.poll)
        self._part()
        return 0

    def _begin(self) -> None:
        ledger = Ledger(self.store, self.name)
        if ledger.due is not None:
            self._last = ledger.due
        if (last := ledger.last) is not None and (last.end is None or last.end.outcome == "failed"):
            self._again = last.begin.due
        soon = ", ".join(clock(instant) for instant in self.times.next(3, now()))
        self.say(f"schedule of {self.name}: next ticks {soon}")

    def _look(self) -> None:
        if self._running is not None:
            job, due = self._running
            status = self.launcher.status(job)
            if status.ended:
                self._running = None
                self._ended(job, due, status)
        elif (due_now := self._due()) is not None:
            self._sent = now()
            self._running = (self.launcher.submit(self.job(due_now)), due_now)
            self.say(f"tick due at {clock(due_now)}: job {self._running[0]}")

    def _due(self) -> datetime | None:
        instant = now()
        if instant < self._not_before:
            return None
        newest = self.times.until(instant)
        if newest > self._last:
            return newest  # also makes up for one that failed
        return self._again

    def _ended(self, job: str, due: datetime, status: JobStatus) -> None:
        ledger = Ledger(self.store, self.name)
        last = ledger.last
        if status.state in ("failed", "stopped", "gone"):  # the last two: by another hand than this one's
            end = last.end if last else None
            if status.state == "failed" and end is not None and end.outcome == "failed" and end.ended >= self._sent:
                self._failed(due, end.reason, {"tick": last and last.begin.number, "run": end.run, "log": end.log})
            else:
                self._failed(due, self._explained(job, status), {})
            return
        if isinstance(self.launcher, Background):
            self.launcher.forget(job)
        if ledger.open is not None or ledger.due is None or ledger.due < due:
            # Another host is at it.
            self._again = ledger.open.due if ledger.open else due
            self._wait(self.patience.lease)
            return
        self._last, self._again, self._failures = max(ledger.due, self._last), None, 0
        quiet = ledger.quiet is not None and (last is None or ledger.quiet.due > last.begin.due)
        if not quiet and last is not None and last.end is not None:
            self.say(f"tick {last.begin.number}: {last.end.outcome}: {last.end.reason}")
        else:
            self.say(f"tick due at {clock(due)}: nothing new")

    def _explained(self, job: str, status: JobStatus) -> str:
        """Why a job failed that left no word in the ledger."""
        try:
            said = " ".join(self.launcher.logs(job).split())[-_SAID:]
        except StageError:
            said = ""
        return redacted(": ".join(part for part in (status.detail or f"the job was {status.state}", said) if part))

    def _failed(self, due: datetime | None, reason: str, about: dict[str, Any]) -> None:
        """Count and tell it; without a ``due`` time it was the schedule itself that could not do something."""
        self._failures += 1
        if due is not None:
            self._last, self._again = max(due, self._last), due
        pause = self.patience.pause(self._failures)
        self._wait(pause)
        most = self.patience.max_failures
        stopped = self._failures >= most
        after = "" if stopped else f"; again in {pause:.0f} s"
        what = f"tick due at {clock(due)}" if due else f"schedule of {self.name}"
        self.say(f"{what}: failed ({self._failures} of {most} in a row): {reason}{after}")
        if self.url is None:
            return
        event = failure(self.name, due, reason, about, self._failures) | {"stopped": stopped}
        if (why := webhook.call(self.url, event)) is not None:
            self.say(f"the webhook could not be called: {why}")

    def _wait(self, seconds: float) -> None:
        self._not_before = now() + timedelta(seconds=seconds)

    def _part(self) -> None:
        """Tell the running tick to stop, and wait for it."""
        if self._running is None:
            self.say("stopped")
            return
        job, due = self._running
        self.say(f"stopping the tick due at {clock(due)}")
        until = time.monotonic() + _PARTING
        try:
            self.launcher.stop(job)
            while not self.launcher.status(job).ended and time.monotonic() < until:
                time.sleep(min(self.poll, 0.5))
        except StageError as error:
            self.say(f"job {job} could not be stopped: {error}")
        self.say("stopped; the next tick goes on where it was")


def failure(name: str, due: datetime | None, reason: str, about: dict[str, Any], failures: int) -> dict[str, Any]:
    """What a webhook is told of a tick that failed."""
    return {
        "event": "tick failed", "pipeline": name, "due": due and clock(due), "reason": reason, "failures": failures,
        "host": socket.gethostname(), "tick": None, "run": None, "log": None, **about,
    }  # fmt: skip


@contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and Ctrl-C set the event; a second Ctrl-C ends the process as usual."""

    def told(*_: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, told) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
