"""What a sweep shows while it runs: on a terminal a table that changes, elsewhere a line for each event."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipelines.report.sweep_values import best_first

Document = Mapping[str, Any]
_ROWS = 30
"""Trials in the table while it changes; it has to fit on a screen."""
_STYLES = {"done": "green", "running": "cyan", "failed": "red", "stopped": "dim", "unfinished": "yellow"}


class View:
    """Shows a sweep's record as it changes."""

    def __init__(self, console: Console, document: Document, parallel: int) -> None:
        self._console, self._document, self._parallel = console, document, parallel
        self._live: Live | None = None
        if console.is_terminal:  # what Ray prints is for the log, so nothing is redirected to the terminal
            self._live = Live(
                console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
            )
        self._said: dict[int, tuple[str, float]] = {
            trial["number"]: (trial["status"], trial["share"]) for trial in document["trials"]
        }

    def __enter__(self) -> View:
        if self._live:
            self._live.start()
        self.show()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def show(self) -> None:
        if self._live:
            self._live.update(table(self._document, _ROWS, time_left(self._document, self._parallel)), refresh=True)
            return
        for trial in self._document["trials"]:
            now = (trial["status"], trial["share"])
            if now in (("running", 1.0), ("waiting", 0.0)):
                continue
            if self._said.get(trial["number"]) != now:
                self._said[trial["number"]] = now
                text = " ".join([f"trial {trial['number']:>3}  {state(trial)}", *_texts(self._document, trial)])
                self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def table(document: Document, rows: int | None = None, left: float | None = None) -> Table:
    """One row for each trial, the best first; ``rows`` are the most."""
    title = f"Sweep {document['sweep']}: {counts(document)}" + (
        "" if left is None else f", about {duration(left)} left"
    )
    result = Table(title=title, title_justify="left")
    names = list(document["parameters"])
    aims = [aim["name"] for aim in document["objective"]]
    for name in ("trial", "state", *names, *aims, "seconds"):
        result.add_column(Text(name), justify="left" if name == "state" else "right")
    shown = best_first(document)
    for trial in shown[:rows]:
        mark = "*" if trial["number"] == document.get("winner") else ""
        cells = [value(trial["point"].get(name)) for name in names]
        scores = [score(trial, name) for name in aims]
        style = _STYLES.get(trial["status"])
        row = [f"{mark}{trial['number']}", state(trial), *cells, *scores, f"{trial['seconds']:.0f}"]
        result.add_row(*(Text(cell, style or "") for cell in row))
    if rows is not None and len(shown) > rows:
        result.caption = f"and {len(shown) - rows} more"
    return result


def counts(document: Document) -> str:
    """Trials by what became of them."""
    found: dict[str, int] = {}
    for trial in document["trials"]:
        found[trial["status"]] = found.get(trial["status"], 0) + 1
    named = ", ".join(f"{count} {status}" for status, count in sorted(found.items()))
    return f"{len(document['trials'])} of {document['wanted']} trials" + (f" ({named})" if named else "")


def time_left(document: Document, parallel: int) -> float | None:
    """Seconds, by the mean of the trials that are through; None before there is one."""
    ended = [trial["seconds"] for trial in document["trials"] if trial["status"] in ("done", "stopped", "failed")]
    if not ended:
        return None
    mean = sum(ended) / len(ended)
    running = [trial["seconds"] for trial in document["trials"] if trial["status"] == "running"]
    left = (document["wanted"] - len(ended)) * mean - sum(min(seconds, mean) for seconds in running)
    return float(max(0.0, left / parallel))


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def state(trial: Document) -> str:
    """A trial's status, and how far it is where that says something."""
    far = f" at {trial['share']:.0%}" if 0 < trial["share"] < 1 else ""
    why = f": {trial['reason']}" if trial["status"] == "failed" else ""
    return f"{trial['status']}{far}{why}"


def value(found: Any) -> str:
    return f"{found:.4g}" if isinstance(found, float) else str(found)


def score(trial: Document, name: str) -> str:
    """A mean with its spread over seeds, if it has one."""
    mean, spread = trial["scores"].get(name), trial["spread"].get(name)
    if mean is None:
        return "-"
    return f"{mean:.4f}" if spread is None else f"{mean:.4f} ± {spread:.4f}"


def _texts(document: Document, trial: Document) -> list[str]:
    named = [f"{name}={value(found)}" for name, found in trial["point"].items()]
    measured = [f"{aim['name']} {score(trial, aim['name'])}" for aim in document["objective"]]
    return [" ", " ".join(named), " ", ", ".join(measured)] if trial["scores"] else [" ", " ".join(named)]
