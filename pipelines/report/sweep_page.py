"""The page of a sweep: one HTML file with plotly in it that loads nothing, and in which no text of the data is HTML."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import lru_cache
from importlib.resources import files
from typing import Any

from pipelines.report import sweep_values as values
from pipelines.report.sweep_plots import sections
from pipelines.report.sweep_values import Record, Trial

_STATUSES = ("done", "stopped", "running", "waiting", "failed", "unfinished")
_BADGES = {"done": "fine", "stopped": "look", "failed": "bad", "interrupted": "look"}


def page(record: Record) -> str:
    """One file for a browser. Its policy allows its own scripts and nothing from a network; all text is escaped."""
    from jinja2 import Environment, StrictUndefined
    from plotly.offline import get_plotlyjs

    plotly, draw = get_plotlyjs(), _resource("sweep_page.js")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    shown = sections(record)
    numbered = [[(f"figure-{i}-{j}", figure) for j, figure in enumerate(s.figures)] for i, s in enumerate(shown)]
    drawn = [
        {"id": name, "data": figure.data, "layout": figure.layout, "wide": figure.wide}
        for some in numbered
        for name, figure in some
    ]
    text = environment.from_string(_resource("sweep_page.jinja")).render(
        style=_resource("sweep_page.css"),
        scripts=[plotly, draw],
        # plotly compiles its drawing of parallel coordinates at run time, which a policy calls eval.
        policy=f"{_digest(plotly)} {_digest(draw)} 'unsafe-eval'" if drawn else "'none'",
        figures=_embedded(drawn),
        sections=list(zip(shown, numbered, strict=True)),
        badges=_BADGES,
        **_headline(record),
        **_winner(record),
        **_table(record),
    )
    return values.encodable(text)


def _headline(record: Record) -> dict[str, Any]:
    counts = dict.fromkeys(_STATUSES, 0)
    for trial in values.trials(record):
        status = str(trial.get("status"))
        counts[status] = counts.get(status, 0) + 1
    goals = [f"{'highest' if better else 'lowest'} {name}" for name, better in values.objectives(record)]
    about = [
        f"round {record['round']}" if record.get("round") is not None else "",
        f"search {record['search']}" if record.get("search") else "",
        f"scheduler {record['scheduler']}" if record.get("scheduler") else "",
        f"started {record['started']}" if record.get("started") else "",
        _duration(record.get("seconds")),
        str(record.get("spec") or ""),
    ]
    return {
        "name": str(record.get("sweep") or "sweep"),
        "status": str(record.get("status") or "unknown"),
        "goals": goals,
        "wanted": record.get("wanted"),
        "total": len(values.trials(record)),
        "counts": {status: count for status, count in counts.items() if count},
        "about": [part for part in about if part],
    }


def _winner(record: Record) -> dict[str, Any]:
    trial = values.winner(record)
    if trial is None:
        finished = any(trial.get("status") == "done" for trial in values.trials(record))
        yet = " yet" if record.get("status") == "running" else ""
        says = f"No trial has won{yet}." if finished else f"No trial finished{yet}."
        return {"winner": None, "no_winner": says, "command": None}
    reached = [(name, _measured(trial, name)) for name, _ in values.objectives(record)]
    return {
        "winner": {
            "number": trial.get("number"),
            "so_far": record.get("status") == "running",
            "point": [(name, values.exact(value)) for name, value in (trial.get("point") or {}).items()],
            "scores": [(name, text) for name, text in reached if text],
            "seeds": trial.get("seeds") or 1,
        },
        "no_winner": "",
        "command": record.get("command"),
    }


def _table(record: Record) -> dict[str, Any]:
    names, measured = values.parameters(record), values.scores(record)
    won = values.winner(record)
    rows = []
    for trial in values.best_first(record):
        point = trial.get("point") or {}
        rows.append({
            "number": trial.get("number"),
            "status": str(trial.get("status") or "unknown"),
            "reason": str(trial.get("reason") or ""),
            "point": [values.shown(point[name]) if name in point else "" for name in names],
            "scores": [_measured(trial, name) for name in measured],
            "seconds": _rounded(trial.get("seconds"), ",.1f"),
            "share": _rounded(trial.get("share"), ".0%"),
            "won": trial is won,
        })  # fmt: skip
    return {"parameters": names, "scores": measured, "rows": rows}


def _measured(trial: Trial, name: str) -> str:
    number, wide = values.score(trial, name), values.spread(trial, name)
    if number is None:
        return ""
    return f"{number:.4g}" + ("" if wide is None else f" ± {wide:.2g}")


def _rounded(value: object, form: str) -> str:
    number = values.finite(value)
    return "" if number is None else format(number, form)


def _duration(value: object) -> str:
    seconds = values.finite(value)
    if seconds is None:
        return ""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _embedded(value: object) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


@lru_cache
def _resource(name: str) -> str:
    return (files("pipelines.report") / name).read_text(encoding="utf-8")
