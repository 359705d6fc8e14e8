"""A tick: from the champion, on what is new, to a better champion or none. One at a time among all hosts."""

from __future__ import annotations

import os
import signal
import socket
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from clusters.local import LocalCluster
from pipelines.plan.rounds import Plan
from pipelines.run import champions, console
from pipelines.run.champions import Champions, Moved
from pipelines.run.execute import execute, reason
from pipelines.run.runner import Committed, Runner, StepFailed
from pipelines.run.store import ArtifactStore
from pipelines.schedule import lease, metrics
from pipelines.schedule.ledger import Artifacts, Begin, End, Ledger, Outcome, clock, now
from pipelines.schedule.news import News, lineage, made_by, news
from pipelines.spec.load import Loaded
from pipelines.spec.models import CHAMPION

Document = dict[str, Any]
INTERRUPTED = 130


@dataclass(frozen=True)
class Options:
    as_json: bool = False
    verbose: bool = False
    ray: str | LocalCluster | None = None
    """An address, or the settings of this machine's own."""
    wait: float = 0
    """Seconds for which a stage waits for machines that the cluster adds on demand."""
    lease: float = 60
    """Seconds of silence after which another host may take over."""


def tick(
    loaded: Loaded, store: ArtifactStore, due: datetime | None, options: Options, say: Callable[[str], None]
) -> tuple[Document, int]:
    """The tick that is due, unless it is done already or another host is at one; without a ``due`` time one is always
    due. An interrupted one is gone on with.

    Returns:
        What became of it (``outcome``, ``reason`` and, of a tick that did something, the entries of the ledger), and
        the exit code: 0 done, 1 failed, 130 interrupted.

    Raises:
        StageError: the store cannot do what a lease needs, or the champion is gone.
        StoreError: a record is damaged, or the store cannot be reached.
    """
    name = loaded.spec.name
    lost: list[str] = []

    def interrupt() -> None:
        lost.append("the lease of this schedule was lost: the store could not be reached, or another host has taken it")
        os.kill(os.getpid(), signal.SIGINT)

    with lease.hold(store, name, options.lease, interrupt) as other:
        if other is not None:
            text = f"a tick of {name} is running on {other.host} since {other.since}; nothing is done here"
            say(text)
            return {"outcome": "held", "reason": text}, 0
        try:
            document, code = _Tick(loaded, store, due, options, say).run()
        except KeyboardInterrupt:
            document, code = {"outcome": "interrupted"}, INTERRUPTED
    if code == INTERRUPTED:
        document["reason"] = lost[0] if lost else "interrupted; the next tick goes on where this one stopped"
        say(document["reason"])
    elif isinstance(options.ray, str):
        metrics.report(store, name, options.ray, say)
    return document, code


@dataclass
class _Tick:
    loaded: Loaded
    store: ArtifactStore
    due: datetime | None
    options: Options
    say: Callable[[str], None]
    ledger: Ledger = field(init=False)
    champions: Champions = field(init=False)

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.store, self.loaded.spec.name)
        self.champions = Champions(self.store, self.loaded.spec.name)

    def run(self) -> tuple[Document, int]:
        if self.due is not None and self._is_done(self.due):
            text = f"the tick that was due at {clock(self.due)} is done already"
            self.say(text)
            return {"outcome": "done before", "reason": text}, 0
        begin, found = self._resumed() or (None, self._news())
        if begin is None:
            if not found.preferences and not found.prompts:
                return self._quiet()
            begin = self._begin(found)
        return self._work(begin, found)

    def _is_done(self, due: datetime) -> bool:
        last = self.ledger.last
        again = last is not None and (last.end is None or last.end.outcome == "failed") and last.begin.due >= due
        return self.ledger.due is not None and due <= self.ledger.due and not again

    def _news(self, pinned: Begin | None = None) -> News:
        """What is new, or what an earlier tick found new, after the champion that it starts from."""
        used = [tick.begin for tick in self.ledger.used]
        spec = self.loaded.spec
        if number := self._number if pinned is None else pinned.champion:
            named = {"model": f"{CHAMPION}{spec.name}@{number}", "revision": None, "adapter": None}
            policy = champions.source(self.store, spec.policy.model_copy(update=named))
            spec = spec.model_copy(update={"policy": policy})

        def takes(kind: Literal["preferences", "prompts"]) -> Callable[[str], bool]:
            if pinned is not None:
                return frozenset(getattr(pinned, kind)).__contains__
            gone = {identity for begin in used for identity in getattr(begin, kind)}
            return lambda identity: identity not in gone

        trained = lineage(self.ledger.ticks, self.champions.history, number)
        return news(spec, self.loaded.path.parent, self.ledger.used, trained, takes("preferences"), takes("prompts"))

    @property
    def _number(self) -> int:
        """The champion's, as it was when this process began; 0 if there is none."""
        return self.champions.current.number if self.champions.current else 0

    def _promoted(self, begin: Begin) -> bool:
        """Whether the tick has made a champion, if it was interrupted after that."""
        return any(made_by(entry, begin) for entry in self.champions.history)

    def _resumed(self) -> tuple[Begin, News] | None:
        """The tick that was interrupted, if what it worked on is still as it was."""
        begin = self.ledger.open
        if begin is None:
            return None
        if begin.champion != self._number and not self._promoted(begin):
            self._end(begin, "outdated", "the champion was changed while the tick was interrupted", {})
            return None
        found = self._news(begin)
        there = [{each.fingerprint for each in kind} for kind in (found.preferences, found.prompts)]
        if there != [set(begin.preferences), set(begin.prompts)]:
            self._end(begin, "outdated", "files that the interrupted tick had taken were changed, or are gone", {})
            return None
        self.say(f"goes on with tick {begin.number}, which {begin.host} began at {clock(begin.began)}")
        return begin, found

    def _begin(self, found: News) -> Begin:
        files, asked = found.preferences, found.prompts
        number = self.ledger.next
        begin = Begin(
            number, self.due or now(), now(), socket.gethostname(),
            self._number, tuple(each.fingerprint for each in files), tuple(each.fingerprint for each in asked),
            tuple(each.key for each in (*files, *asked)),
        )  # fmt: skip
        self.ledger.begin(begin)
        start = f"champion {self._number}" if self._number else "the spec's policy, as there is no champion yet"
        self.say(f"tick {number}: {len(files)} new files of preferences, {len(asked)} of prompts; from {start}")
        return begin

    def _quiet(self) -> tuple[Document, int]:
        self.ledger.nothing(self.due or now())
        text = "nothing new since the last tick: no file of preferences or prompts that was not used"
        self.say(text)
        return {"outcome": "nothing", "reason": text}, 0

    def _work(self, begin: Begin, found: News) -> tuple[Document, int]:
        loaded = replace(self.loaded, spec=found.spec)
        try:
            self._read(begin, found)
        except StepFailed as failure:
            return self._failed(begin, reason(failure), {"log": str(self._log(begin))})
        committed = Committed(self.store)
        for step in found.steps:
            committed(step)
        plan = found.plan(committed)
        if plan is None:
            text = "every row of the new files was used before, or is left out"
            return self._done(begin, "nothing", text, found, None, committed)
        options = self.options
        record, code = execute(loaded, plan, self.store, options.as_json, options.verbose, options.ray, options.wait)
        if code == INTERRUPTED:
            return {"outcome": "interrupted", "run": record["run"]}, code
        if code:
            return self._failed(begin, record["error"], record)
        return self._decide(begin, found, plan, record)

    def _read(self, begin: Begin, found: News) -> None:
        """Read what is new. It is not worth a cluster: there may be no row to train on."""
        with console.terminal(self._log(begin), self.options.verbose, to_stderr=self.options.as_json) as terminal:
            lines = console.Lines(terminal, len(found.steps))
            try:
                with lines:
                    Runner(self.store, lines, connect=lambda: None).run(found.steps)
            except StepFailed as failure:
                traceback.print_exception(failure)  # into the log
                terminal.print(f"failed at {reason(failure)}", highlight=False, markup=False, soft_wrap=True)
                raise

    def _log(self, begin: Begin) -> Path:
        return self.store.scratch / "logs" / f"{self.loaded.spec.name}-tick-{begin.number:06d}.log"

    def _decide(self, begin: Begin, found: News, plan: Plan, record: Document) -> tuple[Document, int]:
        """Make the last policy that the gate let through the champion."""
        committed = Committed(self.store)
        for step in (*found.steps, *plan.steps):  # not all that was read is in the plan
            committed(step)
        promoted = [each for each, row in zip(plan.rounds, record["rounds"], strict=True) if row["promoted"]]
        number = promoted[-1].number if promoted else len(plan.rounds)
        row = record["rounds"][number - 1]
        names = ("round", "win_rate", "judge_score", "baseline_score", "heldout", "misses")
        about = {"tick": begin.number, "began": begin.began.isoformat(), "files": list(begin.names)}
        decision = {**about, **{name: row[name] for name in names}}
        rate = row["win_rate"]
        measured = f"win rate {rate['mean']:.3f} ({rate['low']:.3f} to {rate['high']:.3f}) in round {number}"
        if not promoted and not self._promoted(begin):
            text = f"{measured}: {'; '.join(row['misses'])}; the champion stays"
            return self._done(begin, "refused", text, found, plan, committed, record, decision)
        if promoted and not self._promoted(begin):
            text = f"tick {begin.number}: {measured}"
            try:
                self.champions.move(*committed.place(promoted[-1].train), text, record["run"], decision)
            except Moved:
                self.champions = Champions(self.store, self.champions.name)
                if not self._promoted(begin):  # by another host, which had taken this one for dead
                    text = "the champion was changed by hand while the tick ran; its files count as new"
                    return self._done(begin, "outdated", text, found, plan, committed, record, decision)
        return self._done(begin, "promoted", f"{measured}: the new champion", found, plan, committed, record, decision)

    def _done(
        self, begin: Begin, outcome: Outcome, text: str, found: News, plan: Plan | None, committed: Committed,
        record: Document | None = None, decision: Document | None = None,
    ) -> tuple[Document, int]:  # fmt: skip
        made = found.made(plan, committed)
        return self._document(begin, self._end(begin, outcome, text, record or {}, decision or {}, made), record), 0

    def _failed(self, begin: Begin, text: str, record: Document) -> tuple[Document, int]:
        return self._document(begin, self._end(begin, "failed", text, record), record), 1

    def _end(
        self, begin: Begin, outcome: Outcome, text: str, record: Document, decision: Document | None = None,
        made: Artifacts | None = None,
    ) -> End:  # fmt: skip
        end = End(outcome, now(), text, record.get("run"), record.get("log"), decision or {}, made or Artifacts())
        end = self.ledger.end(begin.number, end)
        self.say(f"tick {begin.number}: {end.outcome}: {end.reason}")
        return end

    def _document(self, begin: Begin, end: End, record: Document | None) -> Document:
        """What became of the tick; it is also kept in the run's record."""
        champion = Champions(self.store, self.champions.name).current
        document = {
            "tick": begin.number, "due": begin.due.isoformat(), "files": list(begin.names), "outcome": end.outcome,
            "reason": end.reason, "run": end.run, "log": end.log, "decision": dict(end.decision),
            "from_champion": begin.champion, "champion": champion.number if champion else None,
        }  # fmt: skip
        if end.run is not None:
            self.store.write_run(end.run, {**(record or {}), "tick": document})
        return document
