"""The lease of a pipeline's schedule: of all hosts that share a store, one at a time runs its ticks.

    schedules/<name>/lease/000007.json    who took it; put in place only if none has its number (``Store.create``)
    schedules/<name>/lease/000007.beat    rewritten as long as it is held, and a last time when it is given back

The newest entry is the lease. It ends when it is given back, or when its holder was silent for as many seconds as it
was taken with: then the next number is free to take. Clocks of different hosts are never compared: how long a holder
has been silent is the time from its last beat to an object that is written by who asks, both by the store's clock.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from pipelines.run.store import ArtifactStore
from pipelines.schedule.keeper import RELEASED, Keeper
from stages.base import StageError
from stages.io.store import StoreError

_KEPT = 3
"""Entries that stay, to look at."""
_TRIES = 10
"""Times that the lease may go to somebody else while it is being taken."""
_MEND = "if no host runs this schedule, delete it"
_FILE = re.compile(r"(\d{6,})\.(json|beat)")


@dataclass(frozen=True)
class Holder:
    """Who has a lease, or had it until it expired."""

    number: int
    host: str
    process: int
    since: str
    silent: float
    """Seconds since its last sign of life, by the store's clock."""
    seconds: float
    """How long it may be silent."""

    @property
    def expired(self) -> bool:
        return self.silent > self.seconds


@dataclass(frozen=True)
class _Entry:
    host: str
    process: int
    since: str
    seconds: float
    token: str
    """Random, so that no two entries are alike: ``Store.create`` takes one like its own for its own."""


def holder(store: ArtifactStore, name: str) -> Holder | None:
    """Who has the lease of a pipeline's schedule: None where nobody took it, or it was given back. It may be expired.

    Raises:
        StoreError: the entry is damaged, or the store cannot be used.
    """
    return _look(store, name)[1]


@contextmanager
def hold(store: ArtifactStore, name: str, seconds: float, lost: Callable[[], None]) -> Iterator[Holder | None]:
    """Take the lease of a pipeline's schedule, and keep it while the block runs. Yields None when it was had, else the
    holder that has it; then nothing is held.

    After ``seconds`` of silence another host may take it; many buckets tell time in whole seconds, so that less than
    three make no sense. ``lost`` is called, once and from a thread, when another one has taken it, or when no beat got
    through for so long that one soon may: then the block must stop what it does. A host that was asleep finds out up to
    a third of ``seconds`` after it has woken up.

    Raises:
        StageError: the store cannot do what a lease needs.
        StoreError: the newest entry is damaged, or the store cannot be used.
    """
    for _ in range(_TRIES):
        newest, now = _look(store, name)
        if now is not None and not now.expired:
            yield now
            return
        began = time.monotonic()
        if _create(store, name, newest + 1, seconds):
            break
    else:
        raise StageError(f"store {store.location} does not list what was just written, or the lease of {name} changes "
                         "hands without end; keep schedules in another store, or look for who takes it")  # fmt: skip
    number = newest + 1
    keeper = Keeper(
        seconds, began,
        gone=lambda: _newest(store, name)[0] != number,  # higher, or lower, where a person has deleted the entry
        beat=lambda what: store.store.write(_place(name, number, "beat"), what),
        lost=lost,
    )  # fmt: skip
    try:
        with contextlib.suppress(StoreError):
            for suffix in ("json", "beat"):
                store.store.delete(_place(name, number - _KEPT, suffix))
        yield None
    finally:
        keeper.end()


def _look(store: ArtifactStore, name: str) -> tuple[int, Holder | None]:
    """The highest number that was ever taken, and who has the lease."""
    number, newest = _newest(store, name)
    place, beat = _place(name, number, "json"), _place(name, number, "beat")
    data = store.store.read(place)
    if data is None or store.store.read(beat) == RELEASED:
        return newest, None
    entry = store.parse(_Entry, place, data, "an entry of a schedule's lease", _MEND)
    now = _clock(store, name)
    heard = store.store.modified(beat) or store.store.modified(place)  # after ``now``: a beat meanwhile counts
    if heard is None:
        return newest, None
    silent = (now - heard).total_seconds()
    if now.microsecond == heard.microsecond == 0:
        silent -= 1  # whole seconds: a beat at the end of one and a question at the begin of the next are as one apart
    return newest, Holder(number, entry.host, entry.process, entry.since, max(0.0, silent), entry.seconds)


def _clock(store: ArtifactStore, name: str) -> datetime:
    """What time it is by the store's clock."""
    probe = f"{_folder(name)}/probe-{uuid.uuid4().hex[:12]}"
    store.store.write(probe, b"")
    try:
        now = store.store.modified(probe)
    finally:
        with contextlib.suppress(StoreError):
            store.store.delete(probe)
    if now is None:
        raise StoreError(f"store {store.location} cannot be used: {probe} was written and is not there")
    return now


def _create(store: ArtifactStore, name: str, number: int, seconds: float) -> bool:
    """Take a number; returns whether it was had."""
    place = _place(name, number, "json")
    since = datetime.now(UTC).isoformat(timespec="seconds")

    def create() -> bool:
        entry = _Entry(socket.gethostname(), os.getpid(), since, seconds, uuid.uuid4().hex)
        return store.create_json(place, asdict(entry))

    if not create():
        return False
    late = _newest(store, name)[0] > number  # so late that its number is one that was taken and deleted meanwhile
    unsafe = not late and create()  # over its own entry: a store that knows no conditions says yes to two hosts, too
    if late or unsafe:
        with contextlib.suppress(StoreError):
            store.store.delete(place)
    if unsafe:
        raise StageError(
            f"store {store.location} cannot keep hosts apart: it lacks conditional writes (If-None-Match); use another "
            "store for schedules, or run them on one host only"
        )
    return not late


def _newest(store: ArtifactStore, name: str) -> tuple[int, int]:
    """The number of the newest entry, and the highest that was taken: a beat stays where a person deleted an entry."""
    found = [_FILE.fullmatch(file) for file in store.store.names(_folder(name))]
    numbers = [(int(each[1]), each[2]) for each in found if each]
    entries = [number for number, suffix in numbers if suffix == "json"]
    return max(entries, default=0), max((number for number, _ in numbers), default=0)


def _folder(name: str) -> str:
    return f"schedules/{name}/lease"


def _place(name: str, number: int, suffix: str) -> str:
    return f"{_folder(name)}/{number:06d}.{suffix}"
