"""What is known of a sweep: one JSON document in the store, rewritten whole whenever a trial has said something."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from pipelines.run.execute import redacted
from pipelines.run.store import ArtifactStore
from stages.tune.config import MODES, SweepConfig

Document = dict[str, Any]
OVER = ("done", "stopped")
"""Trials that are not run again. A failed one is: what it failed for may have been mended."""
_KEPT = ("share", "scores", "spread", "curve", "training")


class Record:
    """A sweep's record. It is also who is told how trials go (``stages.tune.search.Listener``)."""

    def __init__(self, store: ArtifactStore, name: str, head: Mapping[str, Any]) -> None:
        self._store, self._place = store, f"sweeps/{name}/sweep.json"
        earlier = store.read_json(self._place) or {}
        self.document: Document = {
            "sweep": name, **head, "status": "running", "seconds": 0.0, "trials": earlier.get("trials", []),
            "winner": None, "pareto": [], "command": None,
        }  # fmt: skip
        self.changed: Callable[[], object] = lambda: None
        """Called when something is to be shown."""
        self.deadline = math.inf
        self._before = float(earlier.get("seconds", 0.0))
        self._begun = time.monotonic()
        self._since: dict[int, float] = {}
        for trial in self.trials:
            if trial["status"] not in OVER:
                trial["status"] = "unfinished"

    @property
    def trials(self) -> list[Document]:
        found: list[Document] = self.document["trials"]
        return found

    def trial(self, number: int) -> Document:
        return self.trials[number - 1]

    def add(self, number: int, point: Mapping[str, Any]) -> Document:
        """The entry of a trial; a new one if there is none of this number."""
        if number > len(self.trials):
            self.trials.append(
                {
                    "number": number, "point": dict(point), "status": "waiting", "reason": "", "seconds": 0.0,
                    "share": 0.0, "scores": {}, "spread": {}, "seeds": 1, "curve": [], "training": [],
                }
            )  # fmt: skip
        return self.trial(number)

    def is_over(self, number: int) -> bool:
        return number <= len(self.trials) and self.trial(number)["status"] in OVER

    def save(self) -> None:
        self.document["seconds"] = round(self._before + time.monotonic() - self._begun, 1)
        self._store.store.write(self._place, json.dumps(self.document, ensure_ascii=False, indent=1).encode())

    # How trials go

    def started(self, number: int) -> None:
        if not self.is_over(number):
            self._since.setdefault(number, time.monotonic())  # a lost process is no new beginning
            self._set(number, status="running", reason="")

    def measured(self, number: int, result: Mapping[str, Any]) -> None:
        if not self.is_over(number):
            self._take(number, result)
            self._set(number)

    def ended(self, number: int, result: Mapping[str, Any]) -> None:
        if self.is_over(number):
            return
        self._take(number, result)
        if result.get("final"):
            self._set(number, status="done", seeds=len(result.get("each", [None])))
        elif time.monotonic() >= self.deadline:
            self._set(number, status="unfinished", reason="the sweep's time was over")
        else:
            share = self.trial(number)["share"]
            self._set(number, status="stopped", reason=f"did not go on after {share:.0%} of the training")

    def failed(self, number: int, reason: str) -> None:
        if not self.is_over(number):
            self._set(number, status="failed", reason=redacted(reason))
            self._since.pop(number, None)

    def _take(self, number: int, result: Mapping[str, Any]) -> None:
        self.trial(number).update({name: result[name] for name in _KEPT if name in result})

    def _set(self, number: int, **values: Any) -> None:
        trial = self.trial(number)
        trial.update(values)
        if number in self._since:
            now = time.monotonic()
            trial["seconds"] = round(trial["seconds"] + now - self._since[number], 1)
            self._since[number] = now
        self.save()
        self.changed()


def head(settings: SweepConfig, number: int, spec: str, started: str) -> Document:
    """What a sweep's record says before the first trial."""
    return {
        "round": number, "spec": spec, "started": started, "search": settings.search,
        "scheduler": settings.scheduler.use, "wanted": settings.wanted,
        "objective": [{"name": name, "mode": MODES[name]} for name in settings.objective],
        "parameters": {name: {"log": dimension.log} for name, dimension in settings.space.items()},
    }  # fmt: skip
