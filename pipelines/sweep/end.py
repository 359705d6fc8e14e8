"""The end of a sweep: who has won, the page and the tables, and what is said."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from pipelines.report import sweep_page, sweep_table
from pipelines.run.store import ArtifactStore
from pipelines.spec.load import Loaded
from pipelines.sweep import winner
from pipelines.sweep.record import OVER, Document, Record
from pipelines.sweep.view import duration, table


def decide(document: Document) -> None:
    """Note the winner, the best by the first objective of the trials that came to their end, and of several objectives
    those trials of which no other is as good in all and better in one."""
    aims = [(aim["name"], 1 if aim["mode"] == "max" else -1) for aim in document["objective"]]
    scored = {
        trial["number"]: [sign * trial["scores"][name] for name, sign in aims]
        for trial in document["trials"]
        if trial["status"] == "done" and all(_finite(trial["scores"].get(name)) for name, _ in aims)
    }
    document["winner"] = max(scored, key=lambda number: (scored[number], -number), default=None)
    document["pareto"] = []
    if len(aims) > 1:
        document["pareto"] = [one for one in scored if not any(_beats(scored[other], scored[one]) for other in scored)]


def conclude(record: Record, loaded: Loaded, number: int, store: ArtifactStore, terminal: Console) -> None:
    """Bring a record to its end, write what is made of it, and show it."""
    document = record.document
    for trial in document["trials"]:
        if trial["status"] in ("running", "waiting"):
            trial["status"] = "unfinished"
    ended = sum(trial["status"] in (*OVER, "failed") for trial in document["trials"])
    if document["status"] == "done" and ended < document["wanted"]:
        document["status"] = "time over"
    decide(document)
    if document["winner"] is not None:
        point = record.trial(document["winner"])["point"]
        document["command"] = winner.run_command(loaded, number, point, store.location)
    record.save()
    _show(terminal, document, _write_report(store, document))


def _show(terminal: Console, document: Document, files: Mapping[str, str]) -> None:
    """The table of all trials, and what to do next."""

    def say(text: str) -> None:
        terminal.print(text, highlight=False, markup=False, soft_wrap=True)

    if document["trials"]:
        terminal.print(table(document))
    say(f"{document['status']} after {duration(document['seconds'])}")
    for kind, place in files.items():
        say(f"{kind:<9} {place}")
    if document["status"] != "done":
        say("the same command goes on with what is left")
    if document["command"]:
        lead = "winner" if document["status"] == "done" else "best yet"
        say(f"{lead:<9} trial {document['winner']}: {document['command']}")
    elif document["status"] in ("done", "time over"):
        say("no trial came to its end with a score, so none has won; the table and the log say why")
    if document["pareto"]:
        front = ", ".join(map(str, sorted(document["pareto"])))
        say(f"pareto    trials {front}: no other is as good in all and better in one")


def _write_report(store: ArtifactStore, document: Document) -> dict[str, str]:
    """The page and the tables of a sweep, beside its record; returns their places by kind."""
    made = {
        "page": ("sweep.html", sweep_page.page(document).encode()),
        "csv": ("trials.csv", sweep_table.csv_text(document).encode()),
        "parquet": ("trials.parquet", sweep_table.parquet_bytes(document)),
    }
    found = {}
    for kind, (file, data) in made.items():
        place = f"sweeps/{document['sweep']}/{file}"
        store.store.write(place, data)
        found[kind] = f"{store.location.rstrip('/')}/{place}"
    return found


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _beats(first: list[float], other: list[float]) -> bool:
    return first != other and all(a >= b for a, b in zip(first, other, strict=True))
