"""How a schedule is doing, as metrics of a Ray cluster that stays, for Prometheus.

Ray shows a metric for as long as a process goes on setting it, and a tick ends. So the numbers go to an actor that
stays on the cluster's head when the tick has gone. It needs no CPU, and knows nothing of what it shows, so that one
which an older Rondo has started shows what a newer one reports.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from clusters import local, running
from pipelines.run.execute import reason
from pipelines.run.store import ArtifactStore
from pipelines.schedule.ledger import USED_UP, Ledger

_PLACE = ("rondo", "schedule-metrics")
"""The actor's namespace and name."""
_HEAD = {"node:__internal_head__": 0.001}
"""Where the cluster adds and takes away machines, an actor would keep any other from being taken away."""
_SECONDS = 30.0
"""For which the actor is waited for."""
_AGAIN = 5.0
"""Seconds between two settings of the same value."""
Rows = Mapping[str, tuple[str, dict[str, str], float]]
"""Of each metric its description, tags and value."""


def report(store: ArtifactStore, name: str, address: str, say: Callable[[str], None]) -> None:
    """Have the Ray cluster at ``address`` show the totals of a schedule's ledger.

    What keeps it from that is said in one line. It raises nothing: no tick fails for it, nor counts as interrupted.
    """
    try:
        values = totals(Ledger(store, name))
        running.reach(address)
        running.join(address)
        try:
            _show({metric: (about, {"pipeline": name}, values[metric]) for metric, about in _METRICS.items()})
        finally:
            local.stop()
    except (Exception, KeyboardInterrupt) as error:
        say(f"the metrics of this schedule are not reported: {' '.join(reason(error).split())}")


_METRICS = {
    "rondo_schedule_last_success_timestamp_seconds": "When a tick last promoted, refused or found nothing; 0: never.",
    "rondo_schedule_ticks": "Ticks that took files, so far.",
    "rondo_schedule_promotions": "Ticks that made a new champion, so far.",
    "rondo_schedule_failures": "Ticks that failed, so far.",
    "rondo_schedule_failures_in_a_row": "Ticks that have failed since one did not.",
}


def totals(ledger: Ledger) -> dict[str, float]:
    """The metrics' values. Ticks that found nothing new leave no entries in the ledger but the last one's time."""
    outcomes = [tick.end.outcome for tick in ledger.ticks if tick.end]
    succeeded = [tick.end.ended for tick in ledger.ticks if tick.end and tick.end.outcome in USED_UP]
    if ledger.quiet:
        succeeded.append(ledger.quiet.due)
    values = (
        max(succeeded).timestamp() if succeeded else 0.0, len(ledger.ticks), outcomes.count("promoted"),
        outcomes.count("failed"), ledger.failures,
    )  # fmt: skip
    return dict(zip(_METRICS, map(float, values), strict=True))


class Gauges:
    """Holds the metrics, in the actor. Ray drops a gauge that was not set for two of its intervals, of 10 seconds
    each, so they are set again and again."""

    def __init__(self) -> None:
        self._gauges: dict[str, Any] = {}
        self._values: dict[tuple[str, str], tuple[dict[str, str], float]] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._forever, daemon=True).start()

    def show(self, rows: Rows) -> None:
        from ray.util.metrics import Gauge

        with self._lock:
            for name, (about, tags, value) in rows.items():
                if name not in self._gauges:
                    self._gauges[name] = Gauge(name, about, tuple(tags))
                self._values[name, str(tags)] = (tags, value)
        self._set()

    def _set(self) -> None:
        with self._lock:
            for (name, _), (tags, value) in self._values.items():
                self._gauges[name].set(value, tags)

    def _forever(self) -> None:
        while True:
            time.sleep(_AGAIN)
            self._set()


def _show(rows: Rows) -> None:
    import ray

    namespace, name = _PLACE
    gauges = ray.remote(Gauges).options(
        name=name, namespace=namespace, lifetime="detached", get_if_exists=True, num_cpus=0, resources=_HEAD
    ).remote()  # fmt: skip
    ray.get(gauges.show.remote(rows), timeout=_SECONDS)
