"""Parquet and Arrow IPC, files and streams."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from stages.core.errors import RowError
from stages.readers.places import Limits, Place, Row

_BATCH_ROWS = 1000
_BATCH_BYTES = 8 << 20
_BUFFER = 1 << 20
_FAULTS = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)
"""What pyarrow raises on damaged files."""


def parquet(source: Any, file: str, limits: Limits) -> Iterator[Row]:
    """Rows of a Parquet file. The unreadable rest of a row group is one bad row, and the next group is read."""
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
            _bomb(about, source.size(), limits)
            size = max(1, min(_BATCH_ROWS, _BATCH_BYTES * about.num_rows // max(1, about.total_byte_size)))
            for batch in table.iter_batches(size, row_groups=[group], use_threads=False):
                for value in _values(batch, limits):
                    row += 1
                    yield Row(Place(file, row_group=group, row=row), value, typed=True)
        except RowError as error:
            yield Row(Place(file, row_group=group, row=row + 1), error)
        except _FAULTS as error:
            reason = f"the rest of row group {group} cannot be read: {_first(error)}"
            yield Row(Place(file, row_group=group, row=row + 1), RowError("", reason))


def _bomb(group: Any, stored: int, limits: Limits) -> None:
    """Pages are decompressed whole, so a bomb has to be recognised by the file's own metadata. (Not by column: damaged
    statistics of a column make pyarrow end the process.)"""
    out = group.total_byte_size
    if out > limits.ratio_from and out > limits.max_ratio * stored:
        raise RowError("", f"decompresses to {out // max(1, stored)} times the file's size: a decompression bomb")


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
                yield Row(Place(file, row=row), value, typed=True)
    except RowError as error:
        yield Row(Place(file), error)
        return
    except _FAULTS as error:
        broken = broken or f"not whole Arrow data: {_first(error)}"
    if broken:
        yield Row(Place(file, row=row + 1), RowError("", broken))


def _sliced(batch: Any, limits: Limits) -> Iterator[dict[str, Any] | RowError]:
    """Offsets are checked before they are used: the library trusts them, and would read any memory."""
    sound = _sound(batch)
    size = max(1, min(_BATCH_ROWS, _BATCH_BYTES * batch.num_rows // max(1, batch.get_total_buffer_size())))
    for start in range(0, batch.num_rows, size):
        yield from _values(batch.slice(start, size), limits, sound)


def _sound(batch: Any) -> bool:
    """False if the rows have to be checked one by one.

    Raises:
        pyarrow.ArrowInvalid: not even that is possible.
    """
    try:
        batch.validate(full=True)
    except _FAULTS:
        batch.validate()
        if not all(_flat(column.type) for column in batch.columns):
            raise  # a row's part of a nested column cannot be checked by itself
        return False
    return True


def _flat(kind: Any) -> bool:
    return kind.num_fields == 0 and not pa.types.is_dictionary(kind)


def _values(batch: Any, limits: Limits, sound: bool = True) -> Iterator[dict[str, Any] | RowError]:
    """Rows as Python values: all at once, or one by one if they are large or something is wrong with one of them."""
    if sound and batch.nbytes <= limits.max_row_bytes:
        try:
            values = batch.to_pylist()
        except _FAULTS:
            pass
        else:
            yield from values
            return
    for index in range(batch.num_rows):
        yield _one(batch.slice(index, 1), limits, sound)


def _one(row: Any, limits: Limits, sound: bool) -> dict[str, Any] | RowError:
    value: dict[str, Any] = {}
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            if not sound:
                column.validate(full=True)
            if pa.types.is_dictionary(column.type):
                column = column.dictionary_decode()  # else all its values would count
            if column.nbytes > limits.max_row_bytes:
                return RowError(name, f"longer than {limits.max_row_bytes:,} bytes")
            value[name] = column[0].as_py()
        except UnicodeDecodeError:
            return RowError(name, "not UTF-8 text")
        except _FAULTS as error:
            return RowError(name, f"damaged: {_first(error)}")
    return value


def _names(schema: Any) -> None:
    """Columns with the same name would silently become one."""
    if twice := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        raise RowError(twice[0], "the column appears twice")


def _first(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200]
