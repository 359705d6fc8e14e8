"""Parquet and Arrow IPC, files and streams."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from stages.core.formats import RowError
from stages.readers.places import Limits, Place, Row

_BATCH_ROWS = 1000
_BATCH_BYTES = 8 << 20
_BUFFER = 1 << 20
_FAULTS = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)
"""What pyarrow raises over damaged files."""


def parquet(source: Any, file: str, limits: Limits) -> Iterator[Row]:
    """Rows of a Parquet file. What cannot be read of a row group is one bad row, and the next group is read."""
    from pyarrow import parquet as pq

    try:
        table = pq.ParquetFile(source, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True)
        _names(table.schema_arrow)
    except RowError as error:
        yield Row(Place(file), error)
        return
    except _FAULTS as error:
        yield Row(Place(file), RowError("", f"not a whole Parquet file: {_first(error)}"))
        return
    for group in range(table.num_row_groups):
        row = 0
        try:
            about = table.metadata.row_group(group)
            _bomb(about, limits)
            size = max(1, min(_BATCH_ROWS, _BATCH_BYTES * about.num_rows // max(1, about.total_byte_size)))
            for batch in table.iter_batches(size, row_groups=[group], use_threads=False):
                for value in _values(batch, limits):
                    row += 1
                    yield Row(Place(file, row_group=group, row=row), value)
        except RowError as error:
            yield Row(Place(file, row_group=group, row=row + 1), error)
        except _FAULTS as error:
            reason = f"the rest of row group {group} cannot be read: {_first(error)}"
            yield Row(Place(file, row_group=group, row=row + 1), RowError("", reason))


def _bomb(group: Any, limits: Limits) -> None:
    """Pages are decompressed whole, so a bomb has to be known by what the file says of itself."""
    for index in range(group.num_columns):
        column = group.column(index)
        out, stored = column.total_uncompressed_size, column.total_compressed_size
        if out > limits.ratio_from and out > limits.max_ratio * stored:
            raise RowError(
                column.path_in_schema, f"decompresses to {out // max(1, stored)} times its size: a decompression bomb"
            )


def arrow(source: Any, file: str, limits: Limits, broken: str | None = None) -> Iterator[Row]:
    """Rows of Arrow IPC from the start of its stream (a file is a stream between a magic word and a footer).

    ``broken`` is why ``source`` ends early, if it does.
    """
    row = 0
    try:
        reader = pa.ipc.open_stream(source)
        _names(reader.schema)
        for batch in reader:
            for value in _sliced(batch, limits):
                row += 1
                yield Row(Place(file, row=row), value)
    except RowError as error:
        yield Row(Place(file), error)
        return
    except _FAULTS as error:
        broken = broken or f"not whole Arrow data: {_first(error)}"
    if broken:
        yield Row(Place(file, row=row + 1), RowError("", broken))


def _sliced(batch: Any, limits: Limits) -> Iterator[dict[str, Any] | RowError]:
    size = max(1, min(_BATCH_ROWS, _BATCH_BYTES * batch.num_rows // max(1, batch.nbytes)))
    for start in range(0, batch.num_rows, size):
        yield from _values(batch.slice(start, size), limits)


def _values(batch: Any, limits: Limits) -> Iterator[dict[str, Any] | RowError]:
    """Rows as Python values. Offsets and UTF-8 are checked before: the library would trust them."""
    if batch.nbytes <= limits.max_row_bytes:
        try:
            batch.validate(full=True)
            values = batch.to_pylist()
        except _FAULTS:
            pass  # then a row at a time: which is it?
        else:
            yield from values
            return
    for index in range(batch.num_rows):
        yield _one(batch.slice(index, 1), limits)


def _one(row: Any, limits: Limits) -> dict[str, Any] | RowError:
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            column.validate(full=True)
        except _FAULTS as error:
            return RowError(name, f"damaged: {_first(error)}")
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()  # else all its values would count
        if column.nbytes > limits.max_row_bytes:
            return RowError(name, f"longer than {limits.max_row_bytes:,} bytes")
    try:
        value: dict[str, Any] = row.to_pylist()[0]
    except _FAULTS as error:
        return RowError("", f"cannot be read: {_first(error)}")
    return value


def _names(schema: Any) -> None:
    """Columns of one name would silently become one."""
    if twice := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        raise RowError(twice[0], "the column stands twice")


def _first(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200]
