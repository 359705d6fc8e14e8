from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stages.core.errors import RowError
from stages.core.records import PAIRS, SHARD, PairIds, PreferencePair, pair_row
from stages.core.tokens import encoding
from stages.core.tokens.encoding import encode_records
from stages.core.tokens.templates import ChatEncoder
from stages.core.tokens.truncation import truncated
from tests import tiny


def pair(prompt: str = "Name a colour.", chosen: str = "Blue.", **changes: Any) -> PreferencePair:
    def said(role: str, text: str) -> list[Any]:
        return [{"role": role, "content": text}]

    return PreferencePair(said("user", prompt), said("assistant", chosen), said("assistant", "Seven."), **changes)


PAIRS_OF_ALL_KINDS = [
    pair(probability=0.75, weight=2.0, source="file:1"), pair("\U0010fffd"), pair(chosen="a" * 130),
    pair("p" * 200, source="file:4"), replace(pair(), rejected=()), replace(pair(), chosen=()), pair("last"),
]  # fmt: skip


def records(pairs: list[PreferencePair]) -> pa.Table:
    return pa.Table.from_pylist([pair_row(each) for each in pairs], schema=PAIRS)


@pytest.mark.parametrize("policy", ["drop", "keep_start", "keep_end"])
@pytest.mark.parametrize("batch", [1, 2, 256])
def test_a_table_has_what_the_pairs_give_one_by_one(policy: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_BATCH", batch)
    encoder = ChatEncoder(tiny.tokenizer())
    expected, errors = [], []
    for row, each in enumerate(PAIRS_OF_ALL_KINDS):
        try:
            expected.append((row, truncated(encoder.pair(each), 120, policy)))
        except RowError as error:
            errors.append((row, str(error)))
    found = encode_records(encoder, records(PAIRS_OF_ALL_KINDS), 120, policy)
    assert found.table.schema == SHARD
    assert found.table.to_pylist() == [vars(cut.pair) for _, cut in expected]
    assert found.rows.tolist() == [row for row, _ in expected]
    assert found.prompt_cut.tolist() == [cut.prompt for _, cut in expected]
    assert found.response_cut.tolist() == [cut.response for _, cut in expected]
    assert [(row, str(error)) for row, error in found.errors] == errors
    assert any("reserved" in reason for _, reason in errors)
    assert found.prompt_cut.any() == (policy == "keep_end")
    assert found.response_cut.any() == (policy != "drop")


def test_no_records_give_an_empty_table() -> None:
    for table in (records([]), records([pair("\U0010fffd")])):
        found = encode_records(ChatEncoder(tiny.tokenizer()), table, 100, "drop")
        assert found.table.schema == SHARD
        assert found.table.num_rows == len(found.rows) == len(found.prompt_cut) == len(found.response_cut) == 0
        assert found.rows.dtype == np.int64
        assert found.prompt_cut.dtype == np.bool_


def test_sampled_ids_are_trained_on_as_they_are() -> None:
    """The text would be tokenised otherwise: the model may split a word in any way."""
    ids = PairIds([5, 6], [7, 7, 2], [8])
    found = encode_records(ChatEncoder(tiny.tokenizer()), records([pair(), pair(ids=ids), pair("else")]), 120, "drop")
    assert found.rows.tolist() == [0, 1, 2]
    (row,) = found.table.slice(1, 1).to_pylist()
    assert (row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) == ids
    assert row["pair_id"] == pair().pair_id
    assert found.table["prompt_ids"][0].as_py() == ChatEncoder(tiny.tokenizer()).prompt(pair().prompt)
