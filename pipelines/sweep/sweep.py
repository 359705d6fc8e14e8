"""``rondo sweep``: what all trials share is made, the trials are run, and the best one goes on."""

from __future__ import annotations

import statistics
import time
import traceback
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from clusters.local import LocalCluster
from pipelines.plan import rounds
from pipelines.plan.steps import walk
from pipelines.report import sweep_page, sweep_table
from pipelines.run import console
from pipelines.run.connection import Connection
from pipelines.run.execute import carry_out, reason
from pipelines.run.runner import Runner, StepFailed
from pipelines.run.store import ArtifactStore
from pipelines.spec.load import Loaded
from pipelines.sweep import winner
from pipelines.sweep.record import Document, Record, decide, head
from pipelines.sweep.trials import Point, Space, make, places
from pipelines.sweep.view import View, duration, table
from stages.base import StageError
from stages.tune.config import WIN_RATE


@dataclass(frozen=True)
class Options:
    """How a sweep is run, beside its spec."""

    as_json: bool
    verbose: bool
    ray: str | LocalCluster | None
    wait: float
    out: Path | None
    """Where to write the spec with the winner's values."""


def sweep(loaded: Loaded, store: ArtifactStore, options: Options) -> tuple[Document, int]:
    """Sweep a spec's first round, or every n-th, and go on with the best if the spec says so.

    Returns:
        The last sweep's record, with ``spec`` (the file with the values that won) and ``run`` (the record of the run
        with them) where there are such; and the exit code: 0 done, 1 something failed, 130 interrupted.
    """
    settings = loaded.spec.sweep
    assert settings is not None
    last = loaded.spec.rounds if settings.every else 1
    winners: dict[int, Point] = {}
    document: Document = {}
    for number in range(1, last + 1, settings.every or 1):
        spec = winner.resolved(loaded.spec, winners).model_copy(update={"sweep": settings}) if winners else loaded.spec
        document, code = _Sweep(replace(loaded, spec=spec), store, options, number).run()
        if code or document["winner"] is None:
            return document, code or 1
        winners[number] = document["trials"][document["winner"] - 1]["point"]
    if settings.promote is None:
        return document, 0
    best = winner.resolved(loaded.spec, winners)
    kept = f"sweeps/{document['sweep']}/best.yaml"
    store.store.write(kept, winner.text(best, loaded.path.parent).encode())
    file = winner.write(best, loaded, options.out) or f"{store.location.rstrip('/')}/{kept}"
    document["best_spec"] = str(file)
    chosen = replace(loaded, spec=best, argument=str(file), overrides=())
    plan = rounds.plan(best, loaded.path.parent)
    run, code = carry_out(chosen, plan, store, options.as_json, options.verbose, options.ray, options.wait)
    return {**document, "run": run}, code


class _Sweep:
    """One sweep of one round."""

    def __init__(self, loaded: Loaded, store: ArtifactStore, options: Options, number: int) -> None:
        self.loaded, self.store, self.options = loaded, store, options
        self.space = Space(loaded.spec, loaded.path.parent, number)
        self.settings = self.space.settings
        self.name = self.space.name
        self.log = store.scratch / "logs" / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-sweep-{self.name}.log"

    def run(self) -> tuple[Document, int]:
        """Run it, or what is left of it. Returns its record and the exit code."""
        begun = datetime.now(UTC).isoformat(timespec="seconds")
        with ExitStack() as held:
            if not held.enter_context(self.store.lock(f"sweep-{self.name}", timeout=0)):
                raise StageError(f"another command is at the sweep {self.name}; wait for it, or stop it")
            self.terminal = held.enter_context(
                console.terminal(self.log, self.options.verbose, to_stderr=self.options.as_json)
            )
            self.record = Record(
                self.store, self.name, head(self.settings, self.space.number, str(self.loaded.path), begun)
            )
            self.connection = Connection(
                self.loaded, self.store, self.options.ray, self.options.wait, lambda text: self._say(text)
            )
            held.callback(self.connection.close)
            return self._guarded()

    def _guarded(self) -> tuple[Document, int]:
        document = self.record.document
        self._say(f"sweep {self.name}, log {self.log}")
        for note in self.loaded.notes:
            self._say(f"note: {note}")
        try:
            self._run()
            document["status"], code = "done", 0
        except Exception as failure:
            traceback.print_exception(failure)  # into the log
            where = "failed at" if isinstance(failure, StepFailed) else "failed:"
            self._say(f"{where} {reason(failure)}")
            document["status"], document["error"], code = "failed", reason(failure), 1
        except (KeyboardInterrupt, SystemExit):
            document["status"], code = "interrupted", 130
        for trial in document["trials"]:
            if trial["status"] in ("running", "waiting"):
                trial["status"] = "unfinished"
        decide(document)
        if (number := document["winner"]) is not None:
            point = self.record.trial(number)["point"]
            document["command"] = winner.run_command(self.loaded, self.space.number, point, self.store.location)
        self.record.save()
        self._show(document)
        return document, code

    def _run(self) -> None:
        self.runner = Runner(self.store, console.Lines(self.terminal, 0), self.connection.open)
        self._steps(self.space.shared())
        wanted, trials = self.settings.wanted, self.record.trials
        if any(not self.record.is_over(number) for number in range(1, wanted + 1)):
            self._search()
        if WIN_RATE in self.settings.objective:
            self._judge()
        if not any(trial["status"] == "done" for trial in trials):
            return
        decide(self.record.document)
        number = self.record.document["winner"]
        if number is not None and self.settings.promote is None:  # else the run that follows makes it
            self._steps(walk([self.space.round(self.record.trial(number)["point"]).train]))

    def _steps(self, steps: Any) -> None:
        lines = console.Lines(self.terminal, len(steps))
        self.runner.listener = lines
        with lines:
            self.runner.run(steps)

    def _search(self) -> None:
        """The trials that have not ended yet."""
        from stages.io import nodes
        from stages.tune.search import search

        self.connection.open()
        spec, record = self.loaded.spec, self.record
        parallel, cpus = places(spec, nodes.for_workers(spec.resources.train))
        if self.settings.minutes is not None:
            record.deadline = time.monotonic() + self.settings.minutes * 60
        known = [trial["point"] for trial in record.trials]

        def trial(number: int, found: Point) -> Any:
            entry = record.add(number, found)
            return make(self.space, self.runner, number, entry["point"], cpus, record.is_over(number))

        with View(self.terminal, record.document, parallel) as view:
            record.changed = view.show
            search(self.settings, known, trial, parallel, spec.resources.train, cpus, record)

    def _judge(self) -> None:
        """The win rate of every trial that came to its end."""
        for trial in self.record.trials:
            if trial["status"] != "done" or WIN_RATE in trial["scores"]:
                continue
            plans = [self.space.round(trial["point"], seed) for seed in range(self.settings.seeds)]
            evaluations = [made.evaluate for made in plans if made.evaluate is not None]
            self._say(f"trial {trial['number']}: win rate")
            self._steps(walk(evaluations))
            rates = [artifact.summary["win_rate"]["mean"] for artifact in map(self.runner.artifact, evaluations)
                     if artifact is not None]  # fmt: skip
            trial["scores"][WIN_RATE] = statistics.fmean(rates)
            if len(rates) > 1:
                trial["spread"][WIN_RATE] = statistics.stdev(rates)
            self.record.save()

    def _show(self, document: Document) -> None:
        """The table of all trials, and what to do next."""
        files = _write_report(self.store, self.name, document)
        if document["trials"]:
            self.terminal.print(table(document))
        self._say(f"{document['status']} after {duration(document['seconds'])}")
        for name, place in files.items():
            self._say(f"{name:<9} {place}")
        if document["status"] == "interrupted":
            self._say("interrupted; the same command continues where this one stopped")
        elif document["status"] == "failed":
            self._say(f"The whole story is in {self.log}. The same command continues after what is done.")
        if document["command"]:
            _winner(self.terminal, document)
        elif document["status"] == "done":
            self._say("no trial came to its end with a score, so none has won; the table and the log say why")

    def _say(self, text: str) -> None:
        self.terminal.print(text, highlight=False, markup=False, soft_wrap=True)


def _winner(terminal: Console, document: Document) -> None:
    lead = "winner" if document["status"] == "done" else "best yet"
    text = f"{lead:<9} trial {document['winner']}: {document['command']}"
    terminal.print(text, highlight=False, markup=False, soft_wrap=True)
    if document["pareto"]:
        front = ", ".join(map(str, sorted(document["pareto"])))
        terminal.print(f"pareto    trials {front}: no other is better in all", highlight=False, markup=False)


def _write_report(store: ArtifactStore, name: str, document: Mapping[str, Any]) -> dict[str, str]:
    """The page and the tables of a sweep, beside its record; returns their places by kind."""
    made = {
        "page": ("sweep.html", sweep_page.page(document).encode()),
        "csv": ("trials.csv", sweep_table.csv_text(document).encode()),
        "parquet": ("trials.parquet", sweep_table.parquet_bytes(document)),
    }
    found = {}
    for kind, (file, data) in made.items():
        place = f"sweeps/{name}/{file}"
        store.store.write(place, data)
        found[kind] = f"{store.location.rstrip('/')}/{place}"
    return found
