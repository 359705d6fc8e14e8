"""Reading and writing the Arrow IPC files inside artifacts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa


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
