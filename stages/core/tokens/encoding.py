"""Preference records become rows of a shard: Arrow in, Arrow out, many at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.core.errors import RowError
from stages.core.records import SHARD, pair_of
from stages.core.tokens.templates import ChatEncoder, encoded_pair
from stages.core.tokens.truncation import Cut, truncated

_BATCH = 256
"""Records whose texts are tokenised together: enough for the Rust threads, few enough for the processor's caches and
for Python's garbage collector, which walks through every list of ids."""


class Encoded(NamedTuple):
    """``table`` has the schema ``SHARD`` and a row for each usable record, in the records' order; the arrays have its
    length. ``task`` is empty: the mixture sets it."""

    table: pa.Table
    rows: NDArray[np.int64]
    """Which record each row comes from."""
    prompt_cut: NDArray[np.bool_]
    response_cut: NDArray[np.bool_]
    errors: list[tuple[int, RowError]]
    """The other records, and what is wrong with each."""


def encode_records(encoder: ChatEncoder, records: pa.Table, max_length: int, truncation: str) -> Encoded:
    """Encode records of the schema ``PAIRS`` and fit them into ``max_length`` tokens of prompt and response.

    Args:
        truncation: the policy, as in ``stages.core.tokens.truncation``.
    """
    tables, rows, cut = [SHARD.empty_table()], [], []
    errors: list[tuple[int, RowError]] = []
    for start in range(0, records.num_rows, _BATCH):
        good: list[Cut] = []
        for row, found in enumerate(_cuts(encoder, records.slice(start, _BATCH), max_length, truncation), start):
            if isinstance(found, RowError):
                errors.append((row, found))
            else:
                good.append(found)
                rows.append(row)
                cut.append((found.prompt, found.response))
        tables.append(_table(good))
    cuts = np.array(cut, np.bool_).reshape(-1, 2)
    table = pa.concat_tables(tables).combine_chunks()
    return Encoded(table, np.array(rows, np.int64), cuts[:, 0], cuts[:, 1], errors)


def _cuts(encoder: ChatEncoder, records: pa.Table, max_length: int, truncation: str) -> Iterator[Cut | RowError]:
    pairs = [pair_of(row) for row in records.to_pylist()]
    names = records["pair_id"].to_pylist()  # as in PreferencePair.pair_id, which would hash the texts again
    for pair, name, ids in zip(pairs, names, encoder.ids(pairs), strict=True):
        try:
            yield ids if isinstance(ids, RowError) else truncated(encoded_pair(name, ids, pair), max_length, truncation)
        except RowError as error:
            yield error


def _table(cuts: Sequence[Cut]) -> pa.Table:
    columns = []
    for field in SHARD:
        values = [getattr(cut.pair, field.name) for cut in cuts]
        columns.append(_lists(values, field.type) if pa.types.is_list(field.type) else pa.array(values, field.type))
    return pa.table(columns, schema=SHARD)


def _lists(values: Sequence[Sequence[Any]], kind: pa.ListType) -> pa.Array:
    """Lists of numbers as an Arrow column, by way of numpy: Arrow's own conversion looks at each number separately."""
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    flat = np.fromiter(chain.from_iterable(values), kind.value_type.to_pandas_dtype(), offsets[-1])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat), type=kind)
