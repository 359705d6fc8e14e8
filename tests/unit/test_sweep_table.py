"""A sweep as rows, as CSV that a spreadsheet may open, and as Parquet."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.report.sweep_table import csv_text, parquet_bytes, rows


def sweep(*trials: dict[str, Any], **more: Any) -> dict[str, Any]:
    known = {"beta": {"log": True}, "loss": {"log": False}}
    return {"objective": [{"name": "win_rate", "mode": "max"}], "parameters": known, "trials": list(trials), **more}


def trial(number: int, point: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"number": number, "point": point, "status": "done", "reason": "", "seconds": 1.5, "share": 1.0, **more}


def values(*some: Any) -> dict[str, Any]:
    return sweep(*(trial(i + 1, {"loss": value}) for i, value in enumerate(some)), parameters={"loss": {}})


def read(record: dict[str, Any]) -> pa.Table:
    return pq.read_table(pa.BufferReader(parquet_bytes(record)))


def cells(record: dict[str, Any], name: str) -> list[str]:
    return [row[name] for row in csv.DictReader(io.StringIO(csv_text(record)))]


TWO = sweep(
    trial(2, {"beta": 0.2, "loss": "ipo", "extra": 1}, scores={"kl": 0.1}, status="stopped", reason="slow", share=0.5),
    trial(1, {"beta": 0.1}, scores={"win_rate": 0.6, "kl": math.nan}, spread={"win_rate": 0.05}),
)
COLUMNS = [
    *("number", "status", "reason", "seconds", "share", "param.beta", "param.loss", "param.extra"),
    *("score.win_rate", "score.kl", "spread.win_rate"),
]


def test_a_row_for_each_trial_with_every_column() -> None:
    first, second = rows(TWO)
    assert list(first) == list(second) == COLUMNS
    assert list(first.values()) == [1, "done", "", 1.5, 1.0, 0.1, None, None, 0.6, None, 0.05]
    assert list(second.values()) == [2, "stopped", "slow", 1.5, 0.5, 0.2, "ipo", 1, None, 0.1, None]


def test_csv_keeps_numbers_and_leaves_what_is_missing_empty() -> None:
    header, first, second = csv.reader(io.StringIO(csv_text(TWO)))
    assert header == COLUMNS
    assert first == ["1", "done", "", "1.5", "1.0", "0.1", "", "", "0.6", "", "0.05"]
    assert second[5:] == ["0.2", "ipo", "1", "", "0.1", ""]
    assert cells(values({"name": "robust", "x": 1}, True, [1, "ü"]), "param.loss") == [
        '{"name": "robust", "x": 1}', "true", '[1, "ü"]'
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["=cmd()", "+1", "-1", "@SUM(A1)", " =1", "\t=1", "\n-1", "＝1"])
def test_text_never_becomes_a_formula(text: str) -> None:
    assert cells(values(text), "param.loss") == [f"'{text}"]
    assert cells(sweep(trial(1, {}, reason=text)), "reason") == [f"'{text}"]


def test_numbers_and_harmless_text_get_no_quote() -> None:
    assert cells(values(-1.5, -3, 1e-7, "a=b", "x-1", ""), "param.loss") == ["-1.5", "-3", "1e-07", "a=b", "x-1", ""]
    hostile = '<script>alert(1)</script>, "quoted"\nnext line'
    assert cells(sweep(trial(1, {}, reason=hostile)), "reason") == [hostile]


def test_a_parameters_name_is_no_formula_either() -> None:
    header = csv_text(sweep(trial(1, {"=cmd()": 1}), parameters={})).splitlines()[0]
    assert header.endswith("param.=cmd(),score.win_rate")


@pytest.mark.parametrize(
    ("some", "kind", "stored"),
    [
        ([1, 2, None], "int64", [1, 2, None]),
        ([1, 2.5], "double", [1.0, 2.5]),
        (["a", None], "string", ["a", None]),
        ([True, False], "bool", [True, False]),
        ([None, None], "string", [None, None]),
        ([1, "1", None], "string", ["1", '"1"', None]),
        ([True, 1], "string", ["true", "1"]),
        ([{}, {"a": [1]}], "string", ["{}", '{"a": [1]}']),
        ([2**70, 1], "string", [str(2**70), "1"]),
        ([2**2000, 0.5], "string", [str(2**2000), "0.5"]),
    ],
)
def test_parquet_columns_are_of_one_kind(some: list[Any], kind: str, stored: list[Any]) -> None:
    column = read(values(*some)).column("param.loss")
    assert str(column.type) == kind
    assert column.to_pylist() == stored


def test_parquet_holds_the_rows() -> None:
    table = read(TWO)
    assert table.to_pylist() == rows(TWO)
    assert json.loads(json.dumps(table.column("spread.win_rate").to_pylist())) == [0.05, None]


@pytest.mark.parametrize("record", [sweep(), {}, sweep(trial(1, {}, scores=None, spread=None, seconds=None))])
def test_nothing_measured(record: dict[str, Any]) -> None:
    table = read(record)
    assert table.num_rows == len(rows(record)) == len(csv_text(record).splitlines()) - 1
    assert table.column_names == csv_text(record).splitlines()[0].split(",")
    assert {str(table.schema.field(name).type) for name in ("seconds", "share")} == {"double"}
    assert str(table.schema.field("number").type) == "int64"


def test_halves_of_characters_are_replaced() -> None:
    broken = values("\udcff", {"\udcff": 1}, "x")
    assert read(broken).column("param.loss").to_pylist() == ['"?"', '{"?": 1}', '"x"']
    assert cells(broken, "param.loss") == ["?", '{"?": 1}', "x"]
    assert read(sweep(trial(1, {}, reason="\udcff"))).column("reason").to_pylist() == ["?"]
