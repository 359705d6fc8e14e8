"""What a run shows: one progress line per stage. Everything else that libraries print goes to a log file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from pipelines.plan.steps import Step
from pipelines.run.runner import StepResult

_WIDTH = 110
"""Columns where there is no terminal to ask."""


@contextmanager
def terminal(log: Path, verbose: bool, to_stderr: bool) -> Iterator[Console]:
    """A console on the real terminal, while this process and its children write to ``log`` instead.

    With ``verbose`` they write to the terminal too. Works on file descriptors, so that libraries in C and child
    processes are quiet too.
    """
    target = 2 if to_stderr else 1
    log.parent.mkdir(parents=True, exist_ok=True)
    saved = {fd: os.dup(fd) for fd in (1, 2)}
    file: IO[str] = os.fdopen(os.dup(target), "w", encoding="utf-8", errors="replace")
    try:
        _flush()
        if verbose:
            os.dup2(target, 1)  # standard output is kept for the summary where one was asked for
        else:
            sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(sink, 1)
            os.dup2(sink, 2)
            os.close(sink)
        yield Console(file=file, width=None if file.isatty() else _WIDTH)
    finally:
        _flush()
        for fd, original in saved.items():
            os.dup2(original, fd)
            os.close(original)
        file.close()


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


class Lines:
    """Prints one line per step; on a terminal the running step has a bar."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._count = 0
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[note]}"), TimeElapsedColumn(),
            console=console, transient=True, disable=not console.is_terminal,
            redirect_stdout=False, redirect_stderr=False,  # what Ray prints here is for the log
        )  # fmt: skip
        self._task: TaskID | None = None
        self._running = self._why = ""

    def __enter__(self) -> Lines:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def started(self, step: Step, reason: str) -> None:
        self._why = reason
        self._begin(step, "")

    def waiting(self, step: Step) -> None:
        self._begin(step, "another run is at it, waiting")
        if not self._console.is_terminal:
            self._console.print(f"{self._place()} {step.key}: another run is at it, waiting")

    def progress(self, step: Step, done: int, total: int, note: str) -> None:
        count = f"{done:,}/{total:,}" if total else f"{done:,}"  # 0: it is not known yet how many there are
        if self._task is not None and step.key == self._running:
            self._bar.update(self._task, completed=done, total=total or None, note=f"{count} {escape(note)}")

    def finished(self, result: StepResult) -> None:
        self._clear()
        self._count += 1
        state = "[dim]committed[/dim]" if result.cached else f"{result.seconds:7.1f} s"
        why = "" if result.cached or self._why in ("", "new") else f"  [dim]({escape(self._why)})[/dim]"
        self._why = ""
        place = f"[dim]{self._count:>3}/{self._total}[/dim]"
        self._console.print(f"{place} {result.step.key:<26} {state}{why}", highlight=False, soft_wrap=True)
        if note := result.summary.get("note"):
            self._console.print(f"      note: {note}", highlight=False, markup=False, soft_wrap=True)

    def _place(self) -> str:
        return f"{self._count + 1:>3}/{self._total}"

    def _begin(self, step: Step, note: str) -> None:
        self._clear()
        self._running = step.key
        self._task = self._bar.add_task(f"{self._place()} {step.key:<26}", total=None, note=note)

    def _clear(self) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
