"""What a schedule is at: for ``rondo schedule --status``."""

from __future__ import annotations

import socket
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.run.champions import Champions
from pipelines.run.store import ArtifactStore
from pipelines.schedule import lease
from pipelines.schedule.ledger import Ledger, Tick, now
from pipelines.schedule.times import Times

_SHOWN = 10
"""Ticks."""


@dataclass(frozen=True)
class Schedule:
    """What the service that was started last goes by."""

    cron: str
    timezone: str
    host: str
    since: str


def write(store: ArtifactStore, name: str, times: Times) -> None:
    """Keep when a service's ticks are due, for who asks later and elsewhere."""
    about = Schedule(times.cron, times.timezone, socket.gethostname(), now().isoformat())
    store.write_json(_place(name), asdict(about))


def status(store: ArtifactStore, name: str) -> dict[str, Any]:
    """The schedule that was last started, its next tick, the lease, the champion, and the last ticks.

    Raises:
        StoreError: a record is damaged, or the store cannot be reached.
    """
    ledger, champion = Ledger(store, name), Champions(store, name).current
    data = store.store.read(_place(name))
    schedule = data and store.parse(Schedule, _place(name), data, "what a service keeps of its schedule", "delete it")
    holder = lease.holder(store, name)
    next_tick = Times.parse(schedule.cron, schedule.timezone).next(1, now())[0] if schedule else None
    return {
        "name": name,
        "schedule": schedule and asdict(schedule),
        "next": next_tick and next_tick.isoformat(),
        "lease": holder and {**asdict(holder), "expired": holder.expired},
        "champion": champion and asdict(champion),
        "failures": ledger.failures,
        "quiet": ledger.quiet and {"due": ledger.quiet.due.isoformat(), "since": ledger.quiet.since.isoformat(),
                                   "ticks": ledger.quiet.ticks},
        "ticks": [_row(tick) for tick in reversed(ledger.ticks[-_SHOWN:])],
    }  # fmt: skip


def _place(name: str) -> str:
    return f"schedules/{name}/schedule.json"


def _row(tick: Tick) -> dict[str, Any]:
    end = tick.end
    return {
        "tick": tick.begin.number, "due": tick.begin.due.isoformat(), "files": list(tick.begin.names),
        "outcome": end.outcome if end else "not ended", "reason": end.reason if end else f"began on {tick.begin.host}",
        "run": end and end.run, "decision": dict(end.decision) if end else {},
    }  # fmt: skip


def lines(found: dict[str, Any]) -> list[str]:
    """The status as text."""
    schedule, holder, champion, quiet = (found[name] for name in ("schedule", "lease", "champion", "quiet"))
    at = f'"{schedule["cron"]}" {schedule["timezone"]}, last started on {schedule["host"]}' if schedule else "none"
    text = [f"schedule  {at}", f"next      {found['next'] or 'not known: no service was started here'}"]
    if holder is None:
        text.append("lease     free")
    else:
        state = "expired" if holder["expired"] else "held"
        text.append(f"lease     {state}: {holder['host']}, process {holder['process']}, since {holder['since']}, "
                    f"last sign of life {holder['silent']:.0f} s ago")  # fmt: skip
    about = f"{champion['number']}  {champion['policy'][:16]}  {champion['reason']}" if champion else "none yet"
    text.append(f"champion  {about}")
    if quiet is not None:
        text.append(f"quiet     {quiet['ticks']} ticks found nothing new, since {quiet['since']}; last {quiet['due']}")
    if found["failures"]:
        text.append(f"failures  {found['failures']} in a row")
    text += [f"{row['tick']:>8}  {row['due']}  {row['outcome']:<9} {row['reason']}" for row in found["ticks"]]
    return [" ".join(line.splitlines()) for line in text]
