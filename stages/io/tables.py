"""Reading and writing the Arrow IPC files inside artifacts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.io.artifact import Table


def write_table(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> int:
    """Write tables of one schema as one Arrow IPC file; returns the rows."""
    rows = 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for table in tables:
            writer.write_table(table.select(schema.names).cast(schema))
            rows += table.num_rows
    return rows


def read_table(path: Path) -> pa.Table:
    """A memory-mapped Arrow IPC file."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def stream_columns(tables: Iterable[Table], columns: Sequence[str]) -> Iterator[pa.Table]:
    """Some columns of Arrow IPC files, a few rows at a time. Nothing is mapped: what was read is freed again, and the
    other columns are not read at all."""
    for table in tables:
        with pa.OSFile(str(table.path), "rb") as source:
            schema = pa.ipc.open_file(source).schema
            wanted = [schema.get_field_index(name) for name in columns]
            reader = pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=wanted))
            for number in range(reader.num_record_batches):
                yield pa.Table.from_batches([reader.get_batch(number)])


class Rows:
    """Rows of several tables as of one long one. Each is opened, and if need be fetched, when a row of it is asked
    for."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self._tables = tables
        self.starts: NDArray[np.int64] = np.cumsum([0, *(table.rows for table in tables)])
        self._opened: dict[int, pa.Table] = {}

    def __len__(self) -> int:
        return int(self.starts[-1])

    def table(self, number: int) -> pa.Table:
        if number not in self._opened:
            self._opened[number] = read_table(self._tables[number].path)
        return self._opened[number]

    def all(self) -> pa.Table:
        return pa.concat_tables(self.table(number) for number in range(len(self._tables)))

    def number_of(self, row: int) -> int:
        """The number of the table in which a row is."""
        return int(np.searchsorted(self.starts, row, "right")) - 1

    def slice(self, start: int, stop: int) -> pa.Table:
        """The rows from ``start`` to ``stop``, without copying them."""
        found = []
        while start < stop:
            number = self.number_of(start)
            end = min(stop, int(self.starts[number + 1]))
            found.append(self.table(number).slice(start - int(self.starts[number]), end - start))
            start = end
        return pa.concat_tables(found or [self.table(0).slice(0, 0)])

    def take(self, rows: Sequence[int]) -> pa.Table:
        """Rows in the order that they are asked for."""
        wanted = np.asarray(rows, np.int64)
        numbers = np.searchsorted(self.starts, wanted, "right") - 1
        found, places = [], []
        for number in np.unique(numbers):
            own = np.flatnonzero(numbers == number)
            found.append(self.table(int(number)).take(pa.array(wanted[own] - self.starts[number])))
            places.append(own)
        if len(found) == 1:
            return found[0]
        back = np.argsort(np.concatenate(places)) if places else places
        return pa.concat_tables(found or [self.table(0).slice(0, 0)]).take(pa.array(back, pa.int64()))


def rows_of(tables: Sequence[Table]) -> Iterator[dict[str, Any]]:
    """All rows of some tables, one after another."""
    for table in tables:
        yield from read_table(table.path).to_pylist()
