"""The ledger of a schedule: what each tick was to do, what it took, and how it ended.

    schedules/<name>/ticks/000001.json       a tick began
    schedules/<name>/ticks/000001-end.json   and ended
    schedules/<name>/quiet.json              the last tick that found nothing new

Entries are put in place once and never rewritten. A tick without an end was interrupted: the next one goes on with it.
Ticks that found nothing leave one entry in all, so that a schedule of minutes does not fill the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter

from pipelines.run.store import ArtifactStore
from stages.io.store import StoreError

Outcome = Literal["promoted", "refused", "nothing", "failed", "outdated"]
"""``nothing``: the new files held no row that is new. ``outdated``: the champion was changed while the tick ran, or its
files were; it counts for nothing."""
USED_UP: frozenset[Outcome] = frozenset({"promoted", "refused", "nothing"})
"""After these a tick's files are not taken again."""
Made = tuple[str, str]
"""An artifact's fingerprint and ``inputs``."""


@dataclass(frozen=True)
class Begin:
    number: int
    due: datetime
    began: datetime
    host: str
    champion: int
    """Number of the champion that it trains from; 0 if there was none."""
    preferences: tuple[str, ...]
    """The ``data_identity`` of each new file."""
    prompts: tuple[str, ...]
    names: tuple[str, ...]
    """All of them, for people."""


@dataclass(frozen=True)
class Artifacts:
    """What later ticks need of this one."""

    records: tuple[Made, ...] = ()
    prompts: Made | None = None
    selection: Made | None = None
    tokens: tuple[Made, ...] = ()
    own: tuple[Made, ...] = ()


@dataclass(frozen=True)
class End:
    outcome: Outcome
    ended: datetime
    reason: str
    run: str | None = None
    log: str | None = None
    decision: Mapping[str, Any] = field(default_factory=dict)
    """The numbers that the gate saw."""
    made: Artifacts = Artifacts()


@dataclass(frozen=True)
class Tick:
    begin: Begin
    end: End | None


@dataclass(frozen=True)
class Quiet:
    """The last time that nothing was new, and since when that is so."""

    due: datetime
    since: datetime
    ticks: int


T = TypeVar("T")
_MEND = "restore it. If it is deleted, what this tick took counts as new, and is trained on again"
_AHEAD = timedelta(minutes=1)
"""By which another host's clock may be ahead."""


class Ledger:
    """A schedule's ticks, the oldest first, as they were when they were read.

    Raises:
        StoreError: an entry is damaged, or the store cannot be reached.
    """

    def __init__(self, store: ArtifactStore, name: str) -> None:
        self._store, self._folder = store, f"schedules/{name}"
        names = [name for name in store.store.names(f"{self._folder}/ticks") if name.endswith(".json")]
        places = [f"{self._folder}/ticks/{name}" for name in names]
        self.next = 1 + max((int(name[:6]) for name in names if name[:6].isdigit()), default=0)
        """A number of which nothing is there, not even the end of a tick whose beginning was deleted."""
        read = dict(zip(names, store.store.read_all(places), strict=True))
        self.ticks = [
            Tick(self._parsed(Begin, f"ticks/{name}", data), self._end(name, read))
            for name, data in sorted(read.items())
            if data is not None and not name.endswith("-end.json")
        ]
        quiet = store.store.read(f"{self._folder}/quiet.json")
        self.quiet = None if quiet is None else self._parsed(Quiet, "quiet.json", quiet)

    @property
    def last(self) -> Tick | None:
        return self.ticks[-1] if self.ticks else None

    @property
    def open(self) -> Begin | None:
        """The tick that began and has not ended."""
        return self.last.begin if self.last and self.last.end is None else None

    @property
    def due(self) -> datetime | None:
        """When the last tick was due, whatever became of it. A time that is yet to come was written by a clock that
        was ahead, and does not count."""
        found = [each.begin.due for each in self.ticks] + ([self.quiet.due] if self.quiet else [])
        return max((due for due in found if due <= now() + _AHEAD), default=None)

    @property
    def failures(self) -> int:
        """Ticks that have failed since one did not."""
        count = 0
        for tick in reversed(self.ticks):
            if tick.end is None or tick.end.outcome == "outdated":
                continue
            if tick.end.outcome != "failed" or (self.quiet and self.quiet.due > tick.begin.due):
                break
            count += 1
        return count

    @property
    def used(self) -> list[Tick]:
        """Ticks whose files are not taken again."""
        return [tick for tick in self.ticks if tick.end and tick.end.outcome in USED_UP]

    def begin(self, begin: Begin) -> None:
        """Raises:
        StoreError: another process has begun a tick meanwhile: the lease did not keep them apart.
        """
        if not self._store.create_json(f"{self._place(begin.number)}.json", _dumped(begin)):
            raise StoreError(f"{self._folder}: another process has begun tick {begin.number} meanwhile")
        self.ticks.append(Tick(begin, None))

    def end(self, number: int, end: End) -> End:
        """Returns the end that counts: the first one."""
        if not self._store.create_json(f"{self._place(number)}-end.json", _dumped(end)):
            data = self._store.store.read(f"{self._place(number)}-end.json")
            end = end if data is None else self._parsed(End, f"ticks/{number:06d}-end.json", data)
        self.ticks[-1] = Tick(self.ticks[-1].begin, end)
        return end

    def nothing(self, due: datetime) -> None:
        """Keep that a tick found nothing new."""
        before = self.quiet if self.quiet and (not self.last or self.quiet.due > self.last.begin.due) else None
        since, ticks = (before.since, before.ticks + 1) if before else (due, 1)
        self.quiet = Quiet(due, since, ticks)
        self._store.write_json(f"{self._folder}/quiet.json", _dumped(self.quiet))

    def _place(self, number: int) -> str:
        return f"{self._folder}/ticks/{number:06d}"

    def _end(self, name: str, read: Mapping[str, bytes | None]) -> End | None:
        name = name.replace(".json", "-end.json")
        data = read.get(name)
        return None if data is None else self._parsed(End, f"ticks/{name}", data)

    def _parsed(self, kind: type[T], name: str, data: bytes) -> T:
        return self._store.parse(kind, f"{self._folder}/{name}", data, "an entry of a schedule's ledger", _MEND)


def now() -> datetime:
    return datetime.now(UTC)


def clock(instant: datetime) -> str:
    """A time for people, and for other programs."""
    return instant.isoformat(timespec="seconds")


def _dumped(value: object) -> dict[str, Any]:
    dumped: dict[str, Any] = TypeAdapter(type(value)).dump_python(value, mode="json")
    return dumped
