"""One sweep of one round: what all trials share is made, the trials are run, and the best one is found."""

from __future__ import annotations

import contextlib
import statistics
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from clusters.local import LocalCluster
from pipelines.plan.steps import Step, walk
from pipelines.run import console
from pipelines.run.connection import Connection
from pipelines.run.execute import reason
from pipelines.run.runner import Runner, StepFailed
from pipelines.run.store import ArtifactStore
from pipelines.spec.load import Loaded
from pipelines.sweep import end
from pipelines.sweep.record import Document, Record, head
from pipelines.sweep.trials import Point, Space, make, places
from pipelines.sweep.view import View
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


@dataclass(frozen=True)
class Sweep:
    loaded: Loaded
    store: ArtifactStore
    options: Options
    number: int
    """The round."""

    def run(self) -> tuple[Document, int]:
        """Run it, or what is left of it. Returns its record and the exit code, 0 if there is a winner.

        Raises:
            StageError: another command is at it, or its record is damaged.
        """
        space = Space(self.loaded.spec, self.loaded.path.parent, self.number)
        begun = datetime.now(UTC)
        log = self.store.scratch / "logs" / f"{begun:%Y%m%d-%H%M%S}-sweep-{space.name}.log"
        with self.store.lock(f"sweep-{space.name}", timeout=0) as free:
            if not free:
                raise StageError(f"another command is at the sweep {space.name}; wait for it, or stop it")
            about = head(space.settings, self.number, str(self.loaded.path), begun.isoformat(timespec="seconds"))
            record = Record(self.store, space.name, about)
            with console.terminal(log, self.options.verbose, to_stderr=self.options.as_json) as terminal:
                say(terminal, f"sweep {space.name}, log {log}")
                for note in self.loaded.notes:
                    say(terminal, f"note: {note}")
                code = self._guarded(space, record, terminal)
                if code == 1 and record.document["status"] == "failed":
                    say(terminal, f"The whole story is in {log}.")
                return record.document, code

    def _guarded(self, space: Space, record: Record, terminal: Console) -> int:
        """Run the trials and find the best, whatever ends them. Returns the exit code."""
        document = record.document
        connection = Connection(
            self.loaded, self.store, self.options.ray, self.options.wait, lambda text: say(terminal, text), sweep=True
        )
        try:
            _Trials(space, record, terminal, Runner(self.store, console.Lines(terminal, 0), connection.open)).run()
            document["status"], code = "done", 0
        except Exception as failure:
            traceback.print_exception(failure)  # into the log
            where = "failed at" if isinstance(failure, StepFailed) else "failed:"
            say(terminal, f"{where} {reason(failure)}")
            document["status"], document["error"], code = "failed", reason(failure), 1
        except (KeyboardInterrupt, SystemExit):
            document["status"], code = "interrupted", 130
        finally:
            connection.close()
        end.conclude(record, self.loaded, self.number, self.store, terminal)
        return code or int(document["winner"] is None)


@dataclass
class _Trials:
    """The work of a sweep, in its order."""

    space: Space
    record: Record
    terminal: Console
    runner: Runner

    def run(self) -> None:
        settings = self.space.settings
        self._steps(self.space.shared())
        if any(not self.record.is_over(number) for number in range(1, settings.wanted + 1)):
            self._search()
        if WIN_RATE in settings.objective:
            self._judge()
        end.decide(self.record.document)
        if (number := self.record.document["winner"]) is not None:
            made = self.space.round(self.record.trial(number)["point"])
            self._steps(walk([step for step in (made.train, made.heldout) if step is not None]))

    def _steps(self, steps: Sequence[Step]) -> None:
        lines = console.Lines(self.terminal, len(steps))
        self.runner.listener = lines
        with lines:
            self.runner.run(steps)

    def _search(self) -> None:
        """The trials that have not ended yet."""
        from stages.io import nodes
        from stages.tune.search import search

        self.runner.connect()
        spec, record, settings = self.space.spec, self.record, self.space.settings
        parallel, cpus = places(spec, nodes.for_workers(spec.resources.train))
        if settings.minutes is not None:
            record.deadline = time.monotonic() + settings.minutes * 60
        known = [trial["point"] for trial in record.trials]

        def trial(number: int, found: Point) -> Any:
            entry = record.add(number, found)
            recorded = dict(entry) if record.is_over(number) else None
            return make(self.space, self.runner, number, entry["point"], cpus, recorded)

        with View(self.terminal, record.document, parallel) as view:
            record.changed = view.show
            search(settings, known, trial, parallel, spec.resources.train, cpus, record)

    def _judge(self) -> None:
        """The win rate of every trial that came to its end; one whose answers cannot be had, or judged, has failed."""
        for trial in self.record.trials:
            if trial["status"] != "done" or WIN_RATE in trial["scores"]:
                continue
            say(self.terminal, f"trial {trial['number']}: win rate")
            with self._failing(trial):
                plans = [self.space.round(trial["point"], seed) for seed in range(self.space.settings.seeds)]
                evaluations = [made.evaluate for made in plans if made.evaluate is not None]
                self._steps(walk(evaluations))
                found = [artifact for artifact in map(self.runner.artifact, evaluations) if artifact is not None]
                rates = [artifact.summary["win_rate"]["mean"] for artifact in found]
                trial["scores"][WIN_RATE] = statistics.fmean(rates)
                if len(rates) > 1:
                    trial["spread"][WIN_RATE] = statistics.stdev(rates)
            self.record.save()

    @contextlib.contextmanager
    def _failing(self, trial: Document) -> Iterator[None]:
        try:
            yield
        except StepFailed as failure:
            traceback.print_exception(failure)
            trial["status"], trial["reason"] = "failed", reason(failure)
            say(self.terminal, f"trial {trial['number']}  failed: {trial['reason']}")


def say(terminal: Console, text: str) -> None:
    terminal.print(text, highlight=False, markup=False, soft_wrap=True)
