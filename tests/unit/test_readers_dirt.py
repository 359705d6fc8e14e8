"""What is wrong with files and rows, and what becomes of it; the table is in docs/data-files.md."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from stages.readers import DataFile, Limits, Place, RowError, files, rows, streams
from stages.readers.stores import Handle
from tests.unit.test_readers import CONTAINERS, PACKED, ROWS, read, zstd

GOOD = b'{"a": 1}\n'


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def seen(path: Path, **limits: Any) -> list[Any]:
    """Values, and the text of the errors."""
    return [str(row.value) if isinstance(row.value, RowError) else row.value for row in read(path, **limits)]


def only(path: Path, **limits: Any) -> str:
    """The one error that is all there is of a file."""
    (row,) = read(path, **limits)
    assert isinstance(row.value, RowError)
    assert row.place == Place(path.name)
    return str(row.value)


# Compressed files.


@pytest.mark.parametrize("packed", [".gz", ".zst"])
@pytest.mark.parametrize("container", ["jsonl", "array", "a key's list", "csv", "parquet", "arrow file"])
def test_a_cut_file_gives_its_good_rows_and_one_error(container: str, packed: str, tmp_path: Path) -> None:
    suffix, content = CONTAINERS[container]
    whole = PACKED[packed](content())
    before = -1
    for cut in range(1, len(whole), max(1, len(whole) // 40)):
        found = seen(write(tmp_path, f"x{suffix}{packed}", whole[:cut]))
        assert isinstance(found[-1], str), cut
        assert found[:-1] == ROWS[: len(found) - 1]
        assert len(found) >= before
        before = len(found)


def test_all_rows_before_the_cut_are_kept(tmp_path: Path) -> None:
    random.seed(0)
    lines = [json.dumps({"n": i, "x": random.random()}) + "\n" for i in range(3000)]
    text = "".join(lines).encode()
    for packed in (gzip.compress(text), zstd(text)):
        cut = packed[: len(packed) * 2 // 3]
        path = write(tmp_path, "x.jsonl", cut)
        found = read(path)
        if packed[:2] == b"\x1f\x8b":
            there = zlib.decompressobj(31).decompress(cut).count(b"\n")
            assert len(found) == there + 1
        assert [row.value["n"] for row in found[:-1]] == list(range(len(found) - 1))  # type: ignore[index]
        assert "cut off" in str(found[-1].value)
        assert found[-1].place.line == len(found)


def test_a_second_zstd_frame_that_is_cut_off_leaves_the_first(tmp_path: Path) -> None:
    found = seen(write(tmp_path, "x.jsonl.zst", zstd(GOOD * 3) + zstd(GOOD * 3)[:-3]))
    assert found[:3] == [{"a": 1}] * 3
    assert "cut off" in found[-1]


@pytest.mark.parametrize("size", [1, 7, 64])
def test_all_that_a_cut_gzip_stream_holds_comes_out(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "BLOCK", size)
    packed = gzip.compress(b"a" * 3000 + bytes(range(256)) + b"ab" * 1000)
    for cut in range(1, len(packed)):
        out: list[bytes] = []
        with pytest.raises(streams.Broken, match="cut off"):
            out.extend(streams.decompressed(Handle(io.BytesIO(packed[:cut]), "x"), ".gz", Limits()))
        assert b"".join(out) == zlib.decompressobj(31).decompress(packed[:cut])


def test_damage_in_the_middle_keeps_what_came_before(tmp_path: Path) -> None:
    random.seed(0)
    text = "".join(json.dumps({"n": i, "x": random.random()}) + "\n" for i in range(3000)).encode()
    for packed in (gzip.compress(text), zstd(text)):
        for at in range(0, len(packed), len(packed) // 12 + 1):
            damaged = bytearray(packed)
            damaged[at] ^= 0x55
            found = read(write(tmp_path, "x.jsonl", bytes(damaged)))
            if packed[:2] == b"\x1f\x8b" and at > 10:  # before stands when it was made; zstd need not have checksums
                assert isinstance(found[-1].value, RowError)
                before = zlib.decompressobj(31).decompress(packed[: at - 1]).count(b"\n")
                good = [row.value["n"] for row in found[:before] if not isinstance(row.value, RowError)]
                assert good == list(range(before))
    # a checksum that does not fit is noticed at the end, and the last row is not trusted
    damaged = bytearray(gzip.compress(text))
    damaged[-6] ^= 1
    found = read(write(tmp_path, "x.jsonl.gz", bytes(damaged)))
    assert len(found) == 3000
    assert "damaged gzip" in str(found[-1].value)


def test_members_and_padding_of_gzip_are_read(tmp_path: Path) -> None:
    member = gzip.compress(GOOD * 2)
    assert len(seen(write(tmp_path, "x.jsonl.gz", member + b"\0" * 9 + member + b"\0" * 700))) == 4
    assert "damaged gzip" in seen(write(tmp_path, "x.jsonl.gz", member + b"more"))[-1]
    assert seen(write(tmp_path, "x.jsonl.zst", zstd(GOOD) + zstd(GOOD))) == [{"a": 1}] * 2


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_what_is_named_compressed_has_to_be(suffix: str, tmp_path: Path) -> None:
    assert f"named {suffix}, but it is not" in only(write(tmp_path, f"x.jsonl{suffix}", GOOD))


def test_what_is_compressed_need_not_be_named_so(tmp_path: Path) -> None:
    assert seen(write(tmp_path, "x.jsonl", gzip.compress(GOOD))) == [{"a": 1}]
    assert "compressed twice" in only(write(tmp_path, "x.jsonl.gz", gzip.compress(gzip.compress(GOOD))))


@pytest.mark.parametrize("packed", [".gz", ".zst"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_a_bomb_stops_in_flat_memory(suffix: str, packed: str, tmp_path: Path) -> None:
    start = {".jsonl": b'{"a": "', ".json": b'[{"a": "', ".csv": b'a\n"'}[suffix]
    path = write(tmp_path, f"x{suffix}{packed}", PACKED[packed](start + b"x" * 40_000_000))
    tracemalloc.start()
    try:
        found = seen(path, ratio_from=1 << 22, max_row_bytes=1 << 20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "decompression bomb" in found[-1]
    assert len(found) <= 3
    assert peak < 12 << 20


def test_a_stream_may_only_be_so_long(tmp_path: Path) -> None:
    found = seen(write(tmp_path, "x.jsonl.gz", gzip.compress(GOOD * 1000)), max_bytes=5000)
    assert "more than 5,000 bytes" in found[-1]


def test_a_parquet_bomb_is_known_by_what_it_says_of_itself(tmp_path: Path) -> None:
    table = pa.table({"a": ["x" * 3_000_000]})
    pq.write_table(table, tmp_path / "x.parquet", compression="zstd", use_dictionary=False)
    (row,) = read(tmp_path / "x.parquet", ratio_from=1 << 20)
    assert str(row.place) == "x.parquet:group 0 row 1"
    assert "decompresses to" in str(row.value)
    assert "bomb" in str(row.value)


# Text.


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": "caf\xe9"}', "not UTF-8 text (byte 10)"),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8"),
        (b'{"a": "x\0y"}', "NUL byte (byte 8)"),
        (b"\0\0\0\0", "NUL byte"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "c: the key appears twice"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": [-Infinity]}', "-Infinity is not JSON"),
        (b'{"a": 1e999}', "too big"),
        (b'{"a": ' + b"1" * 5000 + b"}", "5000 digits is too big"),
        (b'{"a": ' * 150 + b"1" + b"}" * 150, "nested more than 100 deep"),
        (b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "nested more than 100 deep"),
        (b'{"a": "\\ud83d"}', "a: half a surrogate pair"),
        (b'{"a": [{"\\uDC00": 1}]}', "a: half a surrogate pair"),
        (b"3", "expected a JSON object, found a number"),
        (b"[1]", "expected a JSON object, found a list"),
        (b'"x"', "found text"),
        (b"null", "found null"),
        (b'{"a": 1} {"a": 2}', "not JSON"),
        (b'{"a": ', "not JSON"),
        (b"a\tb", "not JSON"),
    ],
)
def test_a_bad_row_is_one_bad_row(line: bytes, reason: str, tmp_path: Path) -> None:
    (first, bad, last) = seen(write(tmp_path, "x.jsonl", GOOD + line + b"\n" + GOOD))
    assert (first, last) == ({"a": 1}, {"a": 1})
    assert reason in bad
    assert bad.encode()


@pytest.mark.parametrize(
    ("element", "reason"),
    [
        (b'{"a": "caf\xe9"}', "not UTF-8 text"),
        (b'{"a": "x\0y"}', "NUL byte"),
        (b'{"a": 1, "a": 2}', "a: the key appears twice"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "nested more than 100 deep"),
        (b'{"a": "\\ud83d"}', "half a surrogate pair"),
        (b"17", "found a number"),
        (b'[{"a": 1}]', "found a list"),
        (b'"a, ] b"', "found text"),
        (b"", "not JSON"),
        (b'{"a": "' + b"x" * 5000 + b'"}', "longer than 4,096 bytes"),
    ],
)
def test_a_bad_element_of_an_array_is_one_bad_row(element: bytes, reason: str, tmp_path: Path) -> None:
    limit = 4096 if "4,096" in reason else 1 << 24
    for before, behind in ((b"[", b"]"), (b'{"k": 1, "rows": [', b"]}")):
        text = before + b'{"a": 1},\n' + element + b', {"a": 1}' + behind
        (first, bad, last) = seen(write(tmp_path, "x.json", text), max_row_bytes=limit)
        assert (first, last) == ({"a": 1}, {"a": 1})
        assert reason in bad


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[{"a": 1} {"a": 2}]', "expected , or ] after element 1"),
        ('[{"a": 1}', "expected , or ] after element 1, found the end of the file"),
        ('[{"a": 1}, {"a', "ends within element 2"),
        ('[{"a":\n 1}]\n[{"a": 2}]', "more after the end"),
        ('{"a": [{"a": 1}], "b": [{"a": 2}]}', 'rows under "a" and under "b"'),
    ],
)
def test_an_array_that_breaks_off_gives_what_came_before(text: str, reason: str, tmp_path: Path) -> None:
    good, bad = seen(write(tmp_path, "x.json", text.encode()))
    assert good == {"a": 1}
    assert reason in bad


@pytest.mark.parametrize("text", ['{"a": 1}', "{}", '{"a": [1, 2], "b": {"c": [{}]}}', '{\n"prompt": "x"\n}'])
def test_an_object_without_rows_says_what_is_expected(text: str, tmp_path: Path) -> None:
    (bad,) = seen(write(tmp_path, "x.json", text.encode()))
    assert "without a list of rows" in bad
    assert ".jsonl" in bad


def test_a_broken_first_line_does_not_take_the_others_along(tmp_path: Path) -> None:
    for name in ("x.jsonl", "x.json"):
        bad, *good = seen(write(tmp_path, name, b'{"a": "x\n' + GOOD * 2))
        assert "not JSON" in bad
        assert good == [{"a": 1}] * 2
    assert "not JSON" in seen(write(tmp_path, "x.jsonl", b'{"a": '))[0]


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    bom = b"\xef\xbb\xbf"
    assert seen(write(tmp_path, "x.jsonl", bom + GOOD)) == [{"a": 1}]
    assert seen(write(tmp_path, "x.json", bom + b'[{"a": 1}]')) == [{"a": 1}]
    assert seen(write(tmp_path, "x.csv", bom + b"a\n1\n")) == [{"a": "1"}]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.json"])
def test_other_encodings_are_refused(encoding: str, name: str, tmp_path: Path) -> None:
    assert "write it as UTF-8" in only(write(tmp_path, name, GOOD.decode().encode(encoding)))


def test_long_text_is_fine_and_too_long_a_line_is_never_held(tmp_path: Path) -> None:
    (value,) = seen(write(tmp_path, "x.jsonl", json.dumps({"a": "é" * 100_000}).encode()))
    assert len(value["a"]) == 100_000
    (value,) = seen(write(tmp_path, "x.csv", b'a\n"' + b"x" * 300_000 + b'"\n'))
    assert len(value["a"]) == 300_000
    path = write(tmp_path, "x.jsonl", GOOD + b'{"a": "' + b"x" * 30_000_000 + b'"}\n' + GOOD)
    tracemalloc.start()
    try:
        first, bad, last = seen(path, max_row_bytes=1 << 20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (first, last) == ({"a": 1}, {"a": 1})
    assert "longer than 1,048,576 bytes" in bad
    assert peak < 8 << 20


@pytest.mark.parametrize("name", [f"x{suffix}" for suffix in (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")])
def test_an_empty_file_has_no_rows(name: str, tmp_path: Path) -> None:
    assert seen(write(tmp_path, name, b"")) == []
    assert seen(write(tmp_path, name + ".gz", b"")) == []
    assert seen(write(tmp_path, name + ".gz", gzip.compress(b""))) == []


@pytest.mark.parametrize("text", [b"\n\n", b"[]", b" [ ] "])
def test_nor_has_one_without_content(text: bytes, tmp_path: Path) -> None:
    assert seen(write(tmp_path, "x.json", text)) == []


# CSV.


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"1", "1 cells, but the header has 2 columns"),
        (b"1,2,3", "3 cells"),
        (b'"1"x,2', "not CSV"),
        (b"caf\xe9,2", "not UTF-8 text"),
        (b"x\0y,2", "NUL byte"),
        (b"1,\r2", "not CSV"),
        (b"1," + b"x" * 5000, "longer than 4,096 bytes"),
    ],
)
def test_a_bad_csv_row_is_one_bad_row(line: bytes, reason: str, tmp_path: Path) -> None:
    path = write(tmp_path, "x.csv", b"a,b\r\n1,2\r\n" + line + b'\n"1",2')
    first, bad, last = read(path, max_row_bytes=4096)
    assert first.value == last.value == {"a": "1", "b": "2"}
    assert reason in str(bad.value)
    assert (bad.place.line, last.place.line) == (3, 4)
    assert bad.excerpt.startswith(line[:3].decode("utf-8", "replace")[:3].rstrip("\ufffd").replace("\ufffd", "?"))


def test_a_quote_that_is_never_closed_ends_at_the_limit(tmp_path: Path) -> None:
    good, bad = seen(write(tmp_path, "x.csv", b'a\n1\n"x\ny\nz\n'))
    assert good == {"a": "1"}
    assert "not CSV" in bad
    found = seen(write(tmp_path, "x.csv", b'a\n"x\n' + b"y\n" * 3000), max_row_bytes=1000)
    assert "longer than" in found[0]
    assert found[1:] == [{"a": "y"}] * (len(found) - 1)


@pytest.mark.parametrize(("header", "reason"), [(b"a,b,a", "a: the column appears twice"), (b"", "names no columns")])
def test_a_header_that_does_not_name_the_columns(header: bytes, reason: str, tmp_path: Path) -> None:
    (bad,) = seen(write(tmp_path, "x.csv", header + b"\n1,2,3\n"))
    assert reason in bad


# Tables.


def test_a_broken_page_takes_its_row_group_along_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    table = pa.table({"a": [f"{i:08d}" for i in range(300)]})
    pq.write_table(table, path, row_group_size=100, compression="zstd", use_dictionary=False, write_page_checksum=True)
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    middle = column.data_page_offset + column.total_compressed_size // 2
    content[middle : middle + 8] = b"\xff" * 8
    path.write_bytes(content)
    found = read(path)
    assert [row.value["a"] for row in found if not isinstance(row.value, RowError)] == [  # type: ignore[index]
        f"{i:08d}" for i in [*range(100), *range(200, 300)]
    ]
    (bad,) = [row for row in found if isinstance(row.value, RowError)]
    assert str(bad.place) == "x.parquet:group 1 row 1"
    assert "row group 1 cannot be read" in str(bad.value)


@pytest.mark.parametrize("container", ["parquet", "arrow file", "arrow stream"])
def test_a_table_with_any_byte_changed_or_cut_away_never_raises(container: str, tmp_path: Path) -> None:
    suffix, content = CONTAINERS[container]
    whole = content()
    for at in range(0, len(whole), max(1, len(whole) // 150)):
        changed = bytearray(whole)
        changed[at] ^= 0xFF
        for damaged in (bytes(changed), whole[:at]):
            for row in read(write(tmp_path, f"x{suffix}", damaged)):
                assert isinstance(row.value, RowError | dict)


@pytest.mark.parametrize(
    ("name", "content"), [("x.parquet", GOOD), ("x.arrow", b"a,b\n1,2\n"), ("x.parquet", b"\0" * 99)]
)
def test_a_table_has_to_begin_like_one(name: str, content: bytes, tmp_path: Path) -> None:
    assert "does not begin like such a file" in only(write(tmp_path, name, content))


def test_a_parquet_file_without_its_end_is_refused(tmp_path: Path) -> None:
    whole = CONTAINERS["parquet"][1]()
    assert "not a whole Parquet file" in only(write(tmp_path, "x.parquet", whole[:-9]))


def test_text_in_a_table_that_is_not_utf8_is_one_bad_row(tmp_path: Path) -> None:
    column = pa.array([b"x", b"caf\xe9", b"y"]).view(pa.string())
    table = pa.table({"a": column})
    pq.write_table(table, tmp_path / "x.parquet", use_dictionary=False)
    with pa.ipc.new_stream(tmp_path / "x.arrow", table.schema) as writer:
        writer.write_table(table)
    for name in ("x.parquet", "x.arrow"):
        first, bad, last = seen(tmp_path / name)
        assert (first, last) == ({"a": "x"}, {"a": "y"})
        assert "a: damaged" in bad or "a: not UTF-8" in bad


def test_nested_text_that_is_not_utf8(tmp_path: Path) -> None:
    text = pa.array([b"x", b"caf\xe9", b"y"]).view(pa.string())
    table = pa.table({"a": pa.ListArray.from_arrays([0, 1, 2, 3], pa.StructArray.from_arrays([text], ["t"]))})
    pq.write_table(table, tmp_path / "x.parquet", use_dictionary=False)
    first, bad, last = seen(tmp_path / "x.parquet")
    assert (first, last) == ({"a": [{"t": "x"}]}, {"a": [{"t": "y"}]})
    assert bad == "a: not UTF-8 text"
    with pa.ipc.new_stream(tmp_path / "x.arrow", table.schema) as writer:
        writer.write_table(table.slice(0, 1).take([0]))
        writer.write_table(table)
    good, bad = seen(tmp_path / "x.arrow")
    assert good == {"a": [{"t": "x"}]}
    assert "not whole Arrow data" in bad


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.table([["x"], ["y"]], names=["a", "a"])
    with pa.ipc.new_file(tmp_path / "x.arrow", table.schema) as writer:
        writer.write_table(table)
    pq.write_table(table, tmp_path / "x.parquet")
    for name in ("x.arrow", "x.parquet"):
        assert "a: the column appears twice" in only(tmp_path / name)


def test_a_long_value_of_a_table_is_one_bad_row(tmp_path: Path) -> None:
    table = pa.table({"a": ["x", "y" * 5000, "z"], "d": pa.array([c * 3000 for c in "klm"]).dictionary_encode()})
    pq.write_table(table, tmp_path / "x.parquet")
    first, bad, last = seen(tmp_path / "x.parquet", max_row_bytes=4096)
    assert (first["a"], last["a"]) == ("x", "z")
    assert "a: longer than 4,096 bytes" in bad


# What is no data is never loaded.


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet", ".arrow", ".jsonl.gz"])
def test_a_pickle_is_never_loaded(protocol: int, suffix: str, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    content = pickle.dumps(Payload(mark), protocol)
    path = write(tmp_path, f"x{suffix}", gzip.compress(content) if suffix.endswith(".gz") else content)
    found = seen(path)
    assert not mark.exists()
    if protocol >= 2:
        assert "a Python pickle" in only(path)
    elif suffix != ".csv":
        assert found
        assert all(isinstance(value, str) for value in found)


def _zip() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps([1]))
    return sink.getvalue()


def _numpy() -> bytes:
    sink = io.BytesIO()
    np.save(sink, np.array([{}], dtype=object), allow_pickle=True)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (_zip(), "a zip archive"),
        (_numpy(), "a NumPy file"),
        (b"\x7fELF\x02\x01\x01" + b"\0" * 60, "an executable"),
        (b"MZ\x90\0" + b"\0" * 60, "an executable"),
        (b"#!/bin/sh\ntouch executed\n", "a script"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\n<!DOCTYPE html>\n<html>", "a web page"),
        (b"%PDF-1.7", "a PDF"),
        (b"BZh91AY&SY", "use gzip or zstd"),
        (b"\x89PNG\r\n", "an image"),
    ],
)
@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.parquet", "x.arrow"])
def test_other_kinds_of_file_are_named_and_refused(content: bytes, what: str, name: str, tmp_path: Path) -> None:
    assert what in only(write(tmp_path, name, content))
    assert what in only(write(tmp_path, name + ".zst", zstd(content)))


@pytest.mark.parametrize("header", ["parent,child", "orc,elf", "riff,x", "pk,mz", "MZ,x", "# id,x", "id,x", "PARENT,x"])
def test_no_header_is_taken_for_something_else(header: str, tmp_path: Path) -> None:
    (row,) = seen(write(tmp_path, "x.csv", f"{header}\n1,2\n".encode()))
    assert list(row) == header.split(",")


def test_mixed_kinds_in_one_folder_are_each_read_as_what_they_are(tmp_path: Path) -> None:
    for index, (suffix, content) in enumerate(CONTAINERS.values()):
        write(tmp_path, f"{index}{suffix}", content())
    write(tmp_path, "pickled.jsonl", pickle.dumps([1]))
    found = [row.value for file in files(str(tmp_path), tmp_path) for row in rows(file)]
    assert len(found) == len(CONTAINERS) * len(ROWS) + 1
    assert sum(isinstance(value, RowError) for value in found) == 1


def test_limits_have_sense() -> None:
    assert Limits().max_row_bytes > 100_000 * 4
    assert DataFile("s3://a/b.jsonl", "b.jsonl", 1).remote
