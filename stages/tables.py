"""Reading and writing the Arrow IPC files inside artifacts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from stages.core.formats import RowError
from stages.layout import QUARANTINE
from stages.readers import Place

_EXCERPT = 200
_REASONS = 50
"""Reasons that are counted one by one."""
OTHER_REASONS = "other reasons"


def write_table(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> int:
    """Write tables of one schema as one Arrow IPC file; returns the rows."""
    rows = 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for table in tables:
            writer.write_table(table.select(schema.names).cast(schema))
            rows += table.num_rows
    return rows


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> int:
    return write_table(path, [pa.Table.from_pylist(list(rows), schema=schema)], schema)


def read_table(path: Path) -> pa.Table:
    """A memory-mapped Arrow IPC file."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def stream_columns(path: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Some columns of an Arrow IPC file, a few rows at a time. Nothing is mapped: what was read is freed again, and
    the other columns are not read at all."""
    with pa.OSFile(str(path), "rb") as source:
        schema = pa.ipc.open_file(source).schema
        wanted = [schema.get_field_index(name) for name in columns]
        reader = pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=wanted))
        for number in range(reader.num_record_batches):
            yield pa.Table.from_batches([reader.get_batch(number)])


def read_rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_table(path).to_pylist()
    return rows


class Quarantine:
    """The rejected rows, written beside the good ones as they come: where, which field, why, and how the row begins.

    ``summary`` has their number and the totals of the commonest reasons.
    """

    SCHEMA: ClassVar = [(name, pa.string()) for name in ("place", "field", "reason", "excerpt")]

    def __init__(self, folder: Path) -> None:
        self._path = folder / QUARANTINE
        self._reasons: Counter[str] = Counter()

    def __enter__(self) -> Quarantine:
        self._file = self._path.open("w", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @staticmethod
    def row(place: str, error: RowError, excerpt: str) -> dict[str, str]:
        return {"place": place, "field": error.field, "reason": error.reason, "excerpt": excerpt[:_EXCERPT]}

    def add(self, row: Mapping[str, str]) -> None:
        reason = f"{row['field']}: {row['reason']}" if row["field"] else row["reason"]
        if reason not in self._reasons and len(self._reasons) >= _REASONS:
            reason = OTHER_REASONS
        self._reasons[reason] += 1
        place = Place.parse(row["place"])
        where = {name: value for name, value in asdict(place).items() if value is not None}
        rest = {name: row[name] for name in ("field", "reason", "excerpt")}
        self._file.write(json.dumps({**where, **rest}, ensure_ascii=False) + "\n")

    def add_table(self, table: pa.Table) -> None:
        for row in table.select([name for name, _ in self.SCHEMA]).to_pylist():
            self.add(row)

    @property
    def summary(self) -> dict[str, Any]:
        return {"quarantined": self._reasons.total(), "quarantine_reasons": dict(self._reasons.most_common())}
