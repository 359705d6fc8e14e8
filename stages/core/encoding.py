"""Preference records become rows of a shard: Arrow in, Arrow out, many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.core.formats import RowError
from stages.core.records import SHARD, pair_of
from stages.core.templates import ChatEncoder, encoded_pair
from stages.core.truncation import Cut, truncated


class Encoded(NamedTuple):
    """``table`` has the schema ``SHARD`` and one row for each usable record, in the records' order; the rest of that
    length goes with it. ``task`` is empty: it is the mixture's to give."""

    table: pa.Table
    rows: NDArray[np.int64]
    """Which record each row comes from."""
    prompt_cut: NDArray[np.bool_]
    response_cut: NDArray[np.bool_]
    errors: list[tuple[int, RowError]]
    """The other records, and what is wrong with them."""


def encode_records(encoder: ChatEncoder, records: pa.Table, max_length: int, truncation: str) -> Encoded:
    """Encode records of the schema ``PAIRS`` and fit them into ``max_length`` tokens of prompt and response.

    Everything is held in memory, some 10 KB a record: give it a slice of a thousand, not a file.

    Args:
        truncation: the policy, as ``stages.core.truncation`` has it.
    """
    pairs = [pair_of(row) for row in records.to_pylist()]
    names = records["pair_id"].to_pylist()
    cuts: list[Cut] = []
    rows: list[int] = []
    errors: list[tuple[int, RowError]] = []
    for row, (pair, name, ids) in enumerate(zip(pairs, names, encoder.ids(pairs), strict=True)):
        try:
            if isinstance(ids, RowError):
                raise ids
            cuts.append(truncated(encoded_pair(name, ids, pair), max_length, truncation))
        except RowError as error:
            errors.append((row, error))
        else:
            rows.append(row)
    return Encoded(
        _table(cuts),
        np.array(rows, np.int64),
        np.array([cut.prompt for cut in cuts], np.bool_),
        np.array([cut.response for cut in cuts], np.bool_),
        errors,
    )


def _table(cuts: Sequence[Cut]) -> pa.Table:
    columns = []
    for field in SHARD:
        values = [getattr(cut.pair, field.name) for cut in cuts]
        columns.append(_lists(values, field.type) if pa.types.is_list(field.type) else pa.array(values, field.type))
    return pa.table(columns, schema=SHARD)


def _lists(values: Sequence[Sequence[Any]], kind: pa.ListType) -> pa.Array:
    """Lists of numbers as an Arrow column, by way of numpy: Arrow's own conversion looks at each number for itself."""
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    flat = np.fromiter(chain.from_iterable(values), kind.value_type.to_pandas_dtype(), offsets[-1])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat), type=kind)
