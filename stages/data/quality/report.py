"""The report as a JSON value, as one HTML file without scripts, and as some lines for a terminal."""

from __future__ import annotations

import base64
import hashlib
import math
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from stages.data.quality.findings import findings, language_counts
from stages.data.quality.lengths import distribution
from stages.data.quality.survey import Survey
from stages.data.quality.text import cut

Report = dict[str, Any]
_SIDES = ("prompt", "chosen", "rejected")
_SHOWN = 3
_NAME = 120
_MARKS = {"fine": "ok  ", "look": "look", "unknown": "?   "}


def report(survey: Survey) -> Report:
    """The report as JSON; its keys are described in docs/data-quality.md. No number is infinite or NaN."""
    counts, config = survey.counts, survey.config
    lengths = survey.lengths.lengths()
    rows = len(survey.records)
    listed = counts.files(config.tasks)
    tasks: dict[str, int] = {}
    for file in listed:
        file |= {"file": cut(file["file"], _NAME), "task": cut(file["task"], _NAME)}
        tasks[file["task"]] = tasks.get(file["task"], 0) + file["rows"]
    return {
        "rows": rows,
        "paired": counts.paired,
        "unpaired": rows - counts.paired,
        "prompts": counts.prompts(),
        "unit": survey.unit,
        "sample": {"rows": survey.sampled, "complete": survey.sampled == rows},
        "files": listed,
        "tasks": tasks if any(tasks) else {},
        "kinds": {cut(kind, _NAME): count for kind, count in sorted(counts.kinds.items(), key=lambda i: (-i[1], i[0]))},
        "languages": language_counts(survey),
        "lengths": {
            side: distribution(lengths[lengths[:, index] > 0, index]) for index, side in enumerate(_SIDES)
        },
        "findings": findings(survey),
    }  # fmt: skip


def html(value: Report) -> str:
    """One file that loads nothing. Its policy lets no script run and no style but its own; all text is escaped."""
    from jinja2 import Environment, StrictUndefined

    style = _resource("report.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_resource("report.jinja"))
    charts = [_chart(value["lengths"][side]["histogram"]) for side in _SIDES]
    return template.render(report=value, style=style, digest=digest, charts=dict(zip(_SIDES, charts, strict=True)))


def text(value: Report, page: Path | None = None) -> str:
    """A summary for a terminal: how much there is, each finding with its first rows, and where the ``page`` is."""
    paired = f"{value['paired']:,} pairs" + (f", {value['unpaired']:,} single answers" if value["unpaired"] else "")
    lines = [f"{value['rows']:,} rows: {paired}, {value['prompts']:,} prompts"]
    lines += [f"  {file['file']}: {file['rows']:,}" for file in value["files"][:10]]
    if len(value["files"]) > 10:
        lines.append(f"  and {len(value['files']) - 10:,} more files")
    lines.append("")
    for finding in value["findings"]:
        lines.append(f"{_MARKS[finding['level']]}  {finding['title']}: {finding['says']}")
        if finding["level"] != "look":
            continue
        lines += [
            f"        {row['source']}" + (f"  ({row['note']})" if row["note"] else "")
            for row in finding["rows"][:_SHOWN]
        ]
        if (more := finding["count"] - _SHOWN) > 0:
            lines.append(f"        and {more:,} more")
        lines.append(f"        to do: {finding['advice']}")
    if page:
        lines += ["", f"All of it: {page}"]
    return "\n".join(lines)


def _chart(histogram: list[dict[str, int]]) -> list[dict[str, Any]]:
    """Bars as shares of the highest, with the bin's name; bins before the first row are left out."""
    first = next((index for index, bar in enumerate(histogram) if bar["count"]), 0)
    highest = max((bar["count"] for bar in histogram), default=0)
    return [
        {"name": _short(bar["from"]), "count": bar["count"], "share": bar["count"] / highest}
        for bar in histogram[first:]
    ]  # fmt: skip


def _short(number: int) -> str:
    return str(number) if number < 1000 else f"{math.floor(number / 1024)}k"


@lru_cache
def _resource(name: str) -> str:
    return (files("stages.data.quality") / name).read_text(encoding="utf-8")
