"""Users' JSONL files become records; rows that cannot be used go to quarantine with file, line and reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.base import Artifact, StageContext, StageError, Summary, grouped
from stages.catalog import IngestConfig
from stages.core.formats import RowError, decode_line, parse_pair, parse_prompt
from stages.core.records import PAIRS, PROMPTS, pair_row, prompt_row
from stages.layout import RECORDS
from stages.raydata import map_tasks
from stages.tables import write_quarantine, write_table

_ROWS = 1000
_EXCERPT = 200
_SCHEMAS = {"pairs": PAIRS, "prompts": PROMPTS}
_REJECT = [("file", pa.string()), ("line", pa.int64()), ("field", pa.string()), ("reason", pa.string())]


def run(config: IngestConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Read every file, one Ray Data task each; write ``records.arrow`` and ``quarantine.jsonl``.

    Raises:
        StageError: no row can be used.
    """
    schema = _SCHEMAS[config.kind]
    files = grouped(inputs, "files")
    tasks = [{"path": str(file.path), "kind": config.kind} for file in files]
    rejected: list[dict[str, Any]] = []
    seen: dict[str, str] = {}

    def good() -> Iterator[pa.Table]:
        for table in map_tasks(tasks, read_file):
            usable = table.filter(pa.compute.is_null(table["reason"]))
            if config.kind == "prompts":
                usable = _first_of_each(usable, seen, rejected)
            bad = table.filter(pa.compute.is_valid(table["reason"]))
            rejected.extend(bad.select([*(name for name, _ in _REJECT), "excerpt"]).to_pylist())
            yield usable

    rows = write_table(context.output / RECORDS, good(), schema)
    counts = write_quarantine(context.output, rejected)
    if not rows:
        raise StageError(f"no usable row in {', '.join(f.path.name for f in files)}; all went to quarantine: {counts}")
    return {"rows": rows, **counts}


def read_file(task: Mapping[str, Any]) -> Iterator[pa.Table]:
    """One file as tables of records with, for rows that cannot be used, where and why."""
    path = Path(task["path"])
    record = _SCHEMAS[task["kind"]]
    schema = pa.schema([*record, *_REJECT, ("excerpt", pa.string())])
    rows: list[dict[str, Any]] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            text = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
            if not text:
                continue
            rows.append(_row(text, task["kind"], path.name, number))
            if len(rows) == _ROWS:
                yield pa.Table.from_pylist(rows, schema=schema)
                rows = []
    yield pa.Table.from_pylist(rows, schema=schema)


def _row(text: bytes, kind: str, file: str, line: int) -> dict[str, Any]:
    where = {"file": file, "line": line}
    source = f"{file}:{line}"
    try:
        value = decode_line(text)
        if kind == "prompts":
            return {**prompt_row(parse_prompt(value), source), **where}
        return {**pair_row(parse_pair(value, source)), **where}
    except RowError as error:
        excerpt = text[:_EXCERPT].decode("utf-8", "replace")
        return {**where, "field": error.field, "reason": error.reason, "excerpt": excerpt}


def _first_of_each(table: pa.Table, seen: dict[str, str], rejected: list[dict[str, Any]]) -> pa.Table:
    """Rollouts are grouped by prompt id, so a prompt may stand only once."""
    keep = []
    for index, (key, file, line) in enumerate(
        zip(*(table[name].to_pylist() for name in ("prompt_id", "file", "line")), strict=True)
    ):
        if key in seen:
            row = {"file": file, "line": line, "field": "prompt", "reason": "repeats an earlier prompt"}
            rejected.append({**row, "excerpt": f"first at {seen[key]}"})
        else:
            seen[key] = f"{file}:{line}"
            keep.append(index)
    return table.take(pa.array(keep, pa.int64()))
