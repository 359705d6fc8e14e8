"""One run from spec to summary: the record it leaves, the log it writes, the cluster it uses."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shlex
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from clusters.local import LocalCluster
from pipelines.plan.rounds import Plan
from pipelines.run import console, summary
from pipelines.run.connection import Connection
from pipelines.run.runner import Runner, StepFailed
from pipelines.run.store import ArtifactStore
from pipelines.spec.load import Loaded
from stages.base import StageError
from stages.io.store import StoreError

_SECRET = re.compile(r"(?i)(?:hf_|sk-)[A-Za-z0-9_-]{16,}")


@dataclass
class Run:
    """A run in a store; its record is rewritten whole after every step that was executed."""

    loaded: Loaded
    plan: Plan
    store: ArtifactStore
    name: str
    started: str

    @classmethod
    def begin(cls, loaded: Loaded, plan: Plan, store: ArtifactStore) -> Run:
        now = datetime.now(UTC)
        name = f"{now:%Y%m%d-%H%M%S}-{loaded.spec.name}-{secrets.token_hex(2)}"
        return cls(loaded, plan, store, name, now.isoformat(timespec="seconds"))

    @property
    def log(self) -> Path:
        return self.store.scratch / "logs" / f"{self.name}.log"

    def record(self, status: str, runner: Runner, seconds: float, error: str | None = None) -> dict[str, Any]:
        """Write and return what is known of the run; what the user's data or environment held stays out. Of a run that
        has ended early it is only written if the store can be reached: that may be why."""
        document = {
            "run": self.name,
            "status": status,
            "host": socket.gethostname(),
            "spec": str(self.loaded.path),
            "model": self.loaded.spec.policy.model,
            "overrides": [redacted(text) for text in self.loaded.overrides],
            "started": self.started,
            "seconds": round(seconds, 1),
            **summary.summarise(self.plan, runner.results, status == "done"),
            "store": self.store.location,
            "log": str(self.log),
        }
        if error is not None:
            document["error"] = error
        with contextlib.suppress(StoreError) if status in ("failed", "interrupted") else contextlib.nullcontext():
            self.store.write_run(self.name, document)
        return document


class _Recorder(console.Lines):
    """Shows each step, and writes the run's record after each that was executed."""

    def __init__(self, terminal: Console, total: int) -> None:
        super().__init__(terminal, total)
        self.after: Callable[[], object] = lambda: None

    def finished(self, result: Any) -> None:
        super().finished(result)
        if not result.cached:
            self.after()


def execute(
    loaded: Loaded,
    plan: Plan,
    store: ArtifactStore,
    as_json: bool,
    verbose: bool,
    ray: str | LocalCluster | None = None,
    wait: float = 0,
) -> tuple[dict[str, Any], int]:
    """Run a plan on the Ray cluster at an address, or on one of this machine with its own or the given settings, and
    show it. For machines that the cluster adds on demand a stage waits ``wait`` seconds. Returns the run's record and
    the exit code: 0 done, 1 a stage failed, 130 interrupted."""
    run = Run.begin(loaded, plan, store)
    clock = time.monotonic()

    def say(text: str) -> None:
        terminal.print(text, highlight=False, markup=False, soft_wrap=True)

    with store.lock(f"run-{run.name}"), console.terminal(run.log, verbose, to_stderr=as_json) as terminal:
        lines = _Recorder(terminal, len(plan.steps))
        connection = Connection(loaded, store, ray, wait, say)
        runner = Runner(store, lines, connection.open)
        lines.after = lambda: run.record("running", runner, time.monotonic() - clock)
        say(f"run {run.name}, log {run.log}")
        for note in loaded.notes:
            say(f"note: {note}")
        run.record("running", runner, 0.0)
        try:
            with lines:
                runner.run(plan.steps)
            document, code = run.record("done", runner, time.monotonic() - clock), 0
        except Exception as failure:
            traceback.print_exception(failure)  # into the log
            where = "failed at" if isinstance(failure, StepFailed) else "failed:"
            say(f"{where} {reason(failure)}")
            document, code = run.record("failed", runner, time.monotonic() - clock, reason(failure)), 1
        except (KeyboardInterrupt, SystemExit):
            document, code = run.record("interrupted", runner, time.monotonic() - clock), 130
        finally:
            connection.close()
        _show(terminal, document, loaded)
    return document, code


def redacted(text: str) -> str:
    """Without what looks like a token."""
    return _SECRET.sub("[secret]", text)


def reason(error: BaseException | None) -> str:
    """An error in one paragraph: a stage's own words, or the type and message of anything else; no secrets."""
    if isinstance(error, StepFailed):
        return f"{error.step.key}: {reason(error.__cause__)}"
    cause = getattr(error, "cause", None)  # Ray wraps what a worker raised
    inner = cause if isinstance(cause, BaseException) else error
    if isinstance(inner, StageError):
        return redacted(str(inner))
    text = str(inner).strip().splitlines() or [""]
    return redacted(f"{type(inner).__name__}: {text[-1]}")


def command(*arguments: str) -> str:
    """A command line that works when it is pasted into this terminal."""
    program = "rondo" if shutil.which("rondo") else os.path.relpath(Path(sys.executable).parent / "rondo")
    return shlex.join([program, *arguments])


def _show(terminal: Console, document: dict[str, Any], loaded: Loaded) -> None:
    """The table of the rounds, and what to do next."""

    def say(text: str) -> None:
        terminal.print(text, highlight=False, markup=False, soft_wrap=True)

    if document["rounds"]:
        for table in summary.tables(document["rounds"]):
            terminal.print(table)
    for row in document["rounds"]:
        for miss in row["misses"]:
            say(f"round {row['round']} was not promoted: {miss}")
    if document["paid"]:
        cost = f", cost {document['paid']['cost']:.4g}" if document["paid"]["cost"] else ""
        say(f"judging   {document['paid']['tokens']:,} tokens of language models{cost}")
    if document["quarantined"]:
        where = "quarantine.jsonl in the artifacts of ingest, encode and rollout"
        say(f"{document['quarantined']} rows in quarantine ({where})")
    if document["status"] == "done":
        fresh = sum(not step["cached"] for step in document["steps"])
        say(f"done in {document['seconds']:.0f} s: {fresh} steps run, {len(document['steps']) - fresh} found committed")
        say(f"policy    {document['policy']}")
        if document["adapter"]:
            say(f"adapter   {document['adapter']} (virtual tokens; the policy needs them)")
        say(f"manifest  {document['manifest']}")
        store = [] if document["store"] == str(Path.cwd() / ".rondo") else ["--store", document["store"]]
        overrides = [part for text in loaded.overrides for part in ("--set", text)]
        again = ["run", loaded.argument, *overrides, "--set", "train.beta=0.2", *store]
        say(f"next      {command('show', document['run'], *store)}")
        say(f"          {command(*again)}")
    elif document["status"] == "failed":
        say(f"The whole story is in {document['log']}. The same command continues after the last committed step.")
    else:
        say("interrupted; the same command continues where this one stopped")
