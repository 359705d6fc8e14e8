"""A sweep as a table, one row for each trial: as plain rows, as CSV for spreadsheets and as Parquet for programs."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from pipelines.report import sweep_values as values
from pipelines.report.sweep_values import Record

# What a spreadsheet takes for the start of a formula, and the wide forms that some of them read as the same.
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
_LARGEST = 2**63


def rows(record: Record) -> list[dict[str, Any]]:
    """A flat row for each trial, in the order of their numbers; every row has every column, None where nothing is."""
    names, measured, spreads = _columns(record)
    table = []
    for trial in sorted(values.trials(record), key=lambda trial: int(trial.get("number") or 0)):
        point = trial.get("point") or {}
        row: dict[str, Any] = {
            "number": trial.get("number"),
            "status": trial.get("status"),
            "reason": trial.get("reason") or "",
            "seconds": values.finite(trial.get("seconds")),
            "share": values.finite(trial.get("share")),
        }
        row |= {f"param.{name}": point.get(name) for name in names}
        row |= {f"score.{name}": values.score(trial, name) for name in measured}
        row |= {f"spread.{name}": values.spread(trial, name) for name in spreads}
        table.append(row)
    return table


def csv_text(record: Record) -> str:
    """The rows as CSV. Text that a spreadsheet would run as a formula gets a quote in front; numbers stay numbers."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_cell(name) for name in _header(record)])
    writer.writerows([_cell(value) for value in row.values()] for row in rows(record))
    return values.encodable(out.getvalue())


def parquet_bytes(record: Record) -> bytes:
    """The rows as Parquet. A column whose values are not all of one kind, or nested, holds each value as JSON text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = rows(record)
    columns = {}
    for name in _header(record):
        column = [row[name] if not isinstance(row[name], str) else values.encodable(row[name]) for row in table]
        if name == "number":
            columns[name] = pa.array(column, pa.int64())
        elif name in ("seconds", "share") or name.startswith(("score.", "spread.")):
            columns[name] = pa.array(column, pa.float64())
        elif any(value is not None for value in column):
            columns[name] = pa.array(_of_one_kind(column))
        else:  # a column of the null type is more than some readers understand
            columns[name] = pa.array(column, pa.string())
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return bytes(sink.getvalue().to_pybytes())


def _columns(record: Record) -> tuple[list[str], list[str], list[str]]:
    """The names of the parameters, of the scores, and of the scores that have a spread in some trial."""
    measured = values.scores(record)
    spread = {name for trial in values.trials(record) for name in trial.get("spread") or ()}
    return values.parameters(record), measured, [name for name in measured if name in spread]


def _header(record: Record) -> list[str]:
    names, measured, spreads = _columns(record)
    return [
        *("number", "status", "reason", "seconds", "share"),
        *(f"param.{name}" for name in names),
        *(f"score.{name}" for name in measured),
        *(f"spread.{name}" for name in spreads),
    ]


def _cell(value: object) -> object:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    text = values.exact(value)
    # Spreadsheets drop white space in front, so it does not make a formula harmless.
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text


def _of_one_kind(column: list[Any]) -> list[Any]:
    filled = [value for value in column if value is not None]
    kinds = {type(value) for value in filled}
    if not any(isinstance(value, int) and abs(value) >= _LARGEST for value in filled):
        if kinds == {int, float}:
            return [value if value is None else float(value) for value in column]
        if len(kinds) == 1 and kinds <= {bool, int, float, str}:
            return column
    return [value if value is None else values.encodable(json.dumps(value, ensure_ascii=False)) for value in column]
