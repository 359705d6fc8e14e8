"""Every container gives the same rows, each with its place."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from stages.readers import DataFile, Limits, Place, ReadError, Row, RowError, arrays, file_at, lines, rows

ROWS = [
    {"prompt": f"Frage {i}: Größe? 🌍", "chosen": 'Blue, "sky"\nand sea' * i, "rejected": "Seven;"} for i in range(7)
]


def read(path: Path, **limits: Any) -> list[Row]:
    return list(rows(file_at(str(path)), Limits(**limits)))


def values(path: Path, **limits: Any) -> list[Any]:
    return [row.value for row in read(path, **limits)]


def _lines() -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def _separated(delimiter: str) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(ROWS[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def _parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), sink, row_group_size=3)
    return sink.getvalue()


def _arrow(new: Callable[..., Any]) -> bytes:
    sink = io.BytesIO()
    table = pa.Table.from_pylist(ROWS)
    with new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    return sink.getvalue()


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


CONTAINERS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "jsonl": (".jsonl", _lines),
    "crlf": (".jsonl", lambda: _lines().replace(b"\n", b"\r\n")),
    "ndjson": (".ndjson", _lines),
    "lines named json": (".json", _lines),
    "array": (".json", lambda: json.dumps(ROWS).encode()),
    "indented array": (".json", lambda: json.dumps(ROWS, indent=2).encode()),
    "array named jsonl": (".jsonl", lambda: json.dumps(ROWS, indent=1).encode()),
    "array of one line named jsonl": (".jsonl", lambda: json.dumps(ROWS).encode()),
    "a key's list": (".json", lambda: json.dumps({"n": [1, 2], "about": {"a": "]"}, "data": ROWS, "v": 1}).encode()),
    "indented key's list": (".json", lambda: json.dumps({"version": "1", "data": ROWS}, indent=4).encode()),
    "csv": (".csv", lambda: _separated(",")),
    "semicolons": (".csv", lambda: _separated(";")),
    "tsv": (".tsv", lambda: _separated("\t")),
    "parquet": (".parquet", _parquet),
    "parquet under another name": (".jsonl", _parquet),
    "arrow file": (".arrow", lambda: _arrow(pa.ipc.new_file)),
    "arrow stream": (".arrow", lambda: _arrow(pa.ipc.new_stream)),
}
PACKED: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstd}


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_gives_the_same_rows(container: str, packed: str, tmp_path: Path) -> None:
    suffix, content = CONTAINERS[container]
    path = tmp_path / f"x: 1{suffix}{packed}"
    path.write_bytes(PACKED[packed](content()))
    found = read(path)
    assert [row.value for row in found] == ROWS
    for row in found:
        assert row.place.file == path.name
        assert Place.parse(str(row.place)) == row.place
        assert json.loads(row.excerpt) if suffix == ".jsonl" and len(row.excerpt) < 200 else row.excerpt


def places(path: Path) -> list[str]:
    return [str(row.place) for row in read(path)]


def test_lines_are_counted_with_the_empty_ones(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n\n  \r\nno\n{"a": 2}')
    found = read(tmp_path / "x.jsonl")
    assert [row.place.line for row in found] == [1, 4, 5]
    assert [isinstance(row.value, RowError) for row in found] == [False, True, False]
    assert found[1].excerpt == "no"


def test_a_csv_row_stands_where_it_begins(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('a,b\n1,"two\nlines"\n\n3,4\n')
    assert places(tmp_path / "x.csv") == ["x.csv:2", "x.csv:5"]


def test_table_rows_count_from_one_in_their_group(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(_parquet())
    found = places(tmp_path / "x.parquet")
    assert found[0] == "x.parquet:group 0 row 1"
    assert found[3:5] == ["x.parquet:group 1 row 1", "x.parquet:group 1 row 2"]
    (tmp_path / "x.arrow").write_bytes(_arrow(pa.ipc.new_stream))
    assert places(tmp_path / "x.arrow")[-1] == "x.arrow:row 7"
    (tmp_path / "x.json").write_text(json.dumps({"data": ROWS}))
    assert places(tmp_path / "x.json") == [f"x.json:row {i}" for i in range(1, 8)]


@pytest.mark.parametrize(
    "place",
    [
        Place("x"),
        Place("a:1 b.jsonl", line=3),
        Place("group 1 row 2.parquet", row_group=0, row=5),
        Place("x:group 1 row 2", row=1),
        Place("x:12"),
        Place("new\nline.csv", line=1),
    ],
)
def test_a_place_can_be_read_back(place: Place) -> None:
    assert Place.parse(str(place)) == place
    assert Place(**asdict(place)) == place


def test_a_text_that_is_no_place_is_a_file() -> None:
    assert Place.parse("round-1/pair 3") == Place("round-1/pair 3")


def test_values_keep_their_types(tmp_path: Path) -> None:
    value = {"n": 12, "x": 0.5, "t": True, "none": None, "list": [1, {"a": "b"}], "id": 10**100, "e": "🌍"}
    (tmp_path / "x.jsonl").write_text(json.dumps(value) + "\n" + json.dumps(value) + "\n")
    assert values(tmp_path / "x.jsonl") == [value, value]
    (tmp_path / "x.csv").write_text("a,b\n1,\n")
    assert values(tmp_path / "x.csv") == [{"a": "1", "b": ""}]


def test_nulls_nested_and_encoded_columns_come_as_plain_values(tmp_path: Path) -> None:
    table = pa.table(
        {
            "m": [[{"role": "user", "content": "Hi"}], None],
            "d": pa.array(["x", "x"]).dictionary_encode(),
            "l": pa.array(["y", None], pa.large_string()),
        }
    )
    expected = [{"m": [{"role": "user", "content": "Hi"}], "d": "x", "l": "y"}, {"m": None, "d": "x", "l": None}]
    pq.write_table(table, tmp_path / "x.parquet")
    with pa.ipc.new_stream(tmp_path / "x.arrow", table.schema) as writer:
        writer.write_table(table)
    assert values(tmp_path / "x.parquet") == values(tmp_path / "x.arrow") == expected


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13])
def test_text_is_the_same_whatever_the_blocks(size: int) -> None:
    def blocks(text: str) -> list[bytes]:
        data = text.encode()
        return [data[start : start + size] for start in range(0, len(data), size)]

    odd = [{"a\\": 'q"\\', "b": ["]", {"}": "[{"}]}, {"x": "\\\\"}, {"é": "\\u00e9 \n"}]
    for text in (json.dumps(odd), json.dumps({"k": "\\", "n": [], "data": odd, "z": None}, indent=3)):
        assert [row.value for row in arrays.read(blocks(text), "x", Limits())] == odd
    text = "".join(json.dumps(row) + "\n" for row in odd)
    assert [row.value for row in lines.read(blocks(text), "x", Limits())] == odd


def test_excerpts_are_cut_and_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"a": "' + "é".encode() * 5000 + b'"}\n{"a": "\xff"}\n')
    long, broken = read(tmp_path / "x.jsonl")
    assert len(long.excerpt) == 200
    assert broken.excerpt == '{"a": "�"}'
    table = Row(Place("x.parquet", row=1), {"a": "b" * 1000, "c": "d"})
    assert table.excerpt.startswith('{"a": "bbb')
    assert len(table.excerpt) == 200


def test_reading_can_stop_early(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(_lines()))
    reading = rows(file_at(str(path)))
    assert next(reading).value == ROWS[0]
    reading.close()  # type: ignore[attr-defined]


def test_a_file_that_is_gone_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="cannot be read"):
        list(rows(DataFile(str(tmp_path / "x.jsonl"), "x.jsonl", 1)))
