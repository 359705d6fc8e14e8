"""Which files a location names, locally and in stores that are stood in for by local folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import fs
from pyarrow import parquet as pq

from stages.readers import DataFile, ReadError, file_at, files, identity, rows, stores
from stages.readers.listing import _expression


def make(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"a": 1}\n')
    return folder


def names(location: str, base: Path) -> list[str]:
    return [file.name for file in files(location, base)]


def refused(location: str, base: Path) -> str:
    with pytest.raises(ReadError) as caught:
        files(location, base)
    return str(caught.value)


def test_a_file_is_found_from_the_base_or_by_its_absolute_path(tmp_path: Path) -> None:
    make(tmp_path, "d/x.jsonl.gz")
    (file,) = files("d/x.jsonl.gz", tmp_path)
    assert file == DataFile(str(tmp_path / "d/x.jsonl.gz"), "x.jsonl.gz", 9)
    assert files(file.uri, Path("elsewhere")) == [file]
    assert file_at(file.uri, file.name) == file
    assert not file.remote


def test_a_folder_is_all_data_below_it_in_order(tmp_path: Path) -> None:
    make(tmp_path, "b.jsonl", "a.csv", "sub/deep/c.parquet", "B.JSONL", "x y:1.json.zst")
    assert names(".", tmp_path) == ["B.JSONL", "a.csv", "b.jsonl", "sub/deep/c.parquet", "x y:1.json.zst"]


def test_what_describes_data_is_passed_over(tmp_path: Path) -> None:
    make(
        tmp_path, "a.jsonl", ".hidden.jsonl", ".git/x.json", "_SUCCESS", "_tmp/x.jsonl", "README.md", "readme.json",
        "LICENSE", "license.json", "LICENSE.torchtune", "dataset_info.json", "dataset_infos.json", "notes.txt", "m.py",
        "picture.webp", "cache-1.arrow", "model.pkl",
    )  # fmt: skip
    assert names(".", tmp_path) == ["a.jsonl"]
    assert names("readme.json", tmp_path) == ["readme.json"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jsonl", ["a.jsonl", "b.jsonl"]),
        ("[!a].jsonl", ["b.jsonl"]),
        ("s/?/*.jsonl", ["1/c.jsonl", "2/c.jsonl"]),
        ("**/c.*", ["s/1/c.jsonl", "s/2/c.jsonl"]),
        ("**", ["a.jsonl", "b.jsonl", "s/1/c.jsonl", "s/2/c.jsonl"]),
        ("*", ["a.jsonl", "b.jsonl"]),
    ],
)
def test_a_glob(pattern: str, expected: list[str], tmp_path: Path, bucket: Path) -> None:
    layout = ("b.jsonl", "a.jsonl", "s/1/c.jsonl", "s/2/c.jsonl", "note.txt", ".h.jsonl")
    make(tmp_path / "here", *layout)
    make(bucket, *layout)
    assert names(pattern, tmp_path / "here") == expected
    assert names(f"s3://bucket/{pattern}", tmp_path) == expected


def test_a_file_whose_name_looks_like_a_glob(tmp_path: Path) -> None:
    make(tmp_path, "a[1].jsonl", "a1.jsonl")
    assert names("a[1].jsonl", tmp_path) == ["a[1].jsonl"]


def test_what_is_not_there_is_said_with_what_is(tmp_path: Path) -> None:
    make(tmp_path, "train.jsonl", "d/notes.txt", "x.xlsx")
    (tmp_path / "empty").mkdir()
    assert "train.jsonl" in refused("trian.jsonl", tmp_path)
    assert "does not exist" in refused("no/such/x.jsonl", tmp_path)
    message = refused("*.csv", tmp_path)
    assert "nothing that matches *.csv" in message
    assert "train.jsonl" in message
    assert "no folder" in refused("no/*.csv", tmp_path)
    assert "has no files" in refused("empty", tmp_path)
    assert "only notes.txt; known suffixes are .jsonl" in refused("d", tmp_path)
    assert "known are .jsonl" in refused("x.xlsx", tmp_path)
    assert "ftp:// is not known; use s3://, gs://, hf://" in refused("ftp://host/x.jsonl", tmp_path)


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jsonl")
    assert "not a regular file" in refused("x.jsonl", tmp_path)
    (tmp_path / "y.jsonl").symlink_to(tmp_path / "nowhere")
    assert "broken link" in refused("y.jsonl", tmp_path)


def test_links_out_of_a_folder_are_refused_and_others_read_once(tmp_path: Path) -> None:
    make(tmp_path, "in/a.jsonl", "out/secret.jsonl")
    (tmp_path / "in/again.jsonl").symlink_to("a.jsonl")
    assert names("in", tmp_path) == ["a.jsonl"]
    (tmp_path / "in/b.jsonl").symlink_to(tmp_path / "out/secret.jsonl")
    for location in ("in", "in/*.jsonl"):
        assert "in/b.jsonl is reached by a link" in refused(location, tmp_path)
    assert names("in/b.jsonl", tmp_path) == ["b.jsonl"]
    (tmp_path / "in/b.jsonl").unlink()
    (tmp_path / "in/sub").symlink_to(tmp_path / "out")
    for location in ("in", "in/**", "in/*/*.jsonl"):
        assert "is reached by a link" in refused(location, tmp_path)


def saved(folder: Path, shards: int = 2) -> None:
    """As datasets.save_to_disk writes it."""
    folder.mkdir(parents=True)
    own = [f"data-{index:05d}-of-{shards:05d}.arrow" for index in range(shards)]
    for index, name in enumerate(own):
        table = pa.table({"a": [index]})
        with pa.ipc.new_stream(folder / name, table.schema) as writer:
            writer.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in own]}))
    (folder / "dataset_info.json").write_text("{}")


def test_a_dataset_saved_to_disk(tmp_path: Path) -> None:
    saved(tmp_path / "d")
    make(tmp_path / "d", "data-00000-of-00001.arrow", "cache-12.arrow")
    found = files("d", tmp_path)
    assert [file.name for file in found] == ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    assert [row.value for file in found for row in rows(file)] == [{"a": 0}, {"a": 1}]
    (tmp_path / "d/data-00001-of-00002.arrow").unlink()
    assert "data-00001-of-00002.arrow, which is missing" in refused("d", tmp_path)
    (tmp_path / "d/state.json").write_text("{")
    assert "state.json cannot be read" in refused("d", tmp_path)


def test_of_a_dataset_with_splits_one_is_named(tmp_path: Path) -> None:
    for split in ("train", "test"):
        saved(tmp_path / "d" / split)
    (tmp_path / "d/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    message = refused("d", tmp_path)
    assert "splits train, test; name one" in message
    assert f"{tmp_path}/d/train" in message
    assert len(files("d/train", tmp_path)) == 2


def test_identity_is_the_content_s(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl", "b.jsonl")
    first, second = files(".", tmp_path)
    assert identity(first) == identity(second)
    (tmp_path / "b.jsonl").write_text('{"a": 2}\n')
    assert identity(first) != identity(second)
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(ReadError):
        identity(first)


# Stores. s3:// and gs:// go through pyarrow's file systems and hf:// through fsspec's handler, here as in use; only
# what lies behind is a local folder.


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "store" / "bucket"
    folder.mkdir(parents=True)
    store = fs.SubTreeFileSystem(str(tmp_path / "store"), fs.LocalFileSystem())

    class Stores:
        @staticmethod
        def from_uri(uri: str) -> tuple[Any, str]:
            scheme, _, name = uri.partition("://")
            assert scheme in ("s3", "gs")
            if name != "bucket":
                raise OSError(f"no bucket {name}")
            return store, name

    monkeypatch.setattr(fs, "FileSystem", Stores)
    return folder


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_bucket_is_read_like_a_folder(scheme: str, bucket: Path, tmp_path: Path) -> None:
    make(bucket, "p/b.jsonl", "p/a.jsonl", "p/README.md", "p/q/c.jsonl")
    with (bucket / "p/d #1.parquet").open("wb") as sink:
        pq.write_table(pa.table({"a": [1]}), sink)
    saved(bucket / "p/e", shards=1)
    found = files(f"{scheme}://bucket/p/", tmp_path)
    assert [file.name for file in found] == [
        "a.jsonl", "b.jsonl", "d #1.parquet", "e/data-00000-of-00001.arrow", "q/c.jsonl",
    ]  # fmt: skip
    for file in found:
        assert file.remote
        assert file == file_at(file.uri, file.name)
        (row,) = rows(file)
        assert set(row.value) == {"a"}
        assert str(row.place).startswith(file.name)
    assert files(f"{scheme}://bucket/p/a.jsonl", tmp_path) == [DataFile(f"{scheme}://bucket/p/a.jsonl", "a.jsonl", 9)]


def test_a_bucket_s_faults_are_told(bucket: Path, tmp_path: Path) -> None:
    make(bucket, "x.txt")
    assert "does not exist" in refused("s3://bucket/none.jsonl", tmp_path)
    assert "s3://bucket/x.txt: the suffix is not one of a known kind of data" in refused("s3://bucket/x.txt", tmp_path)
    assert "cannot be reached (OSError: no bucket other)" in refused("s3://other/x.jsonl", tmp_path)
    gone = DataFile("s3://bucket/gone.jsonl", "gone.jsonl", 1)
    for ask in (identity, lambda file: list(rows(file)), lambda file: file_at(file.uri)):
        with pytest.raises(ReadError, match=r"gone\.jsonl"):
            ask(gone)


def test_identity_in_a_bucket_needs_no_download(bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(bucket, "a.jsonl")
    (file,) = files("s3://bucket/a.jsonl", tmp_path)

    def never(file: DataFile) -> None:
        raise AssertionError("opened")

    with monkeypatch.context() as patch:
        patch.setattr(stores, "opened", never)
        before = identity(file)
        assert before == identity(file_at(file.uri))
        os.utime(bucket / "a.jsonl", (1, 1))
        assert identity(file) != before


class Lost(fs.LocalFileSystem):
    """A connection that is lost after the first bytes."""

    def open_input_file(self, path: str) -> Any:
        class File:
            closed = False
            at = 0

            def read(self, size: int = -1) -> bytes:
                if self.at > 4:
                    raise OSError("connection reset")
                with open(path, "rb") as file:
                    file.seek(self.at)
                    data = file.read(size if self.at + size < 5 else 5)
                self.at += len(data)
                return data

            def seek(self, position: int, whence: int = 0) -> int:
                self.at = position if whence == 0 else os.path.getsize(path)
                return self.at

            def tell(self) -> int:
                return self.at

            def __enter__(self) -> File:
                return self

            def __exit__(self, *_: object) -> None:
                pass

        return File()


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".arrow"])
def test_a_lost_connection_is_no_fault_of_the_data(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.unit.test_readers import CONTAINERS, PACKED

    kind, _, packed = suffix[1:].partition(".")
    content = CONTAINERS["arrow stream" if kind == "arrow" else kind][1]()
    path = tmp_path / f"x{suffix}"
    path.write_bytes(PACKED["." + packed if packed else ""](content))
    monkeypatch.setattr(stores, "filesystem", lambda uri: (Lost(), uri.removeprefix("s3://")))
    with pytest.raises(ReadError, match="connection reset"):
        list(rows(DataFile(f"s3://{path}", path.name, 100)))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub whose files lie in folders named by commit."""
    from fsspec.implementations.dirfs import DirFileSystem
    from fsspec.implementations.local import LocalFileSystem

    class Hub(DirFileSystem):  # type: ignore[misc]
        def info(self, path: str, **options: Any) -> dict[str, Any]:
            known: dict[str, Any] = super().info(path, **options)
            if known["type"] == "file":
                content = (tmp_path / "hub" / path).read_bytes()
                known["blob_id"] = f"blob of {content!r}"
            return known

    commits = {None: "a" * 40, "v1": "b" * 40, "refs/convert/parquet": "c" * 40}
    monkeypatch.setattr(stores, "hub", lambda: Hub(str(tmp_path / "hub"), LocalFileSystem()))
    monkeypatch.setattr(stores, "hub_commit", lambda repository, revision: commits[revision])
    return tmp_path / "hub" / "datasets" / "owner"


def test_a_dataset_on_the_hub_is_read_at_a_commit(hub: Path, tmp_path: Path) -> None:
    first, second = (hub / f"name@{letter * 40}" for letter in "ab")
    make(first, "data/x.jsonl", "README.md")
    make(second, "data/x.jsonl", "data/y.jsonl")
    (second / "data/y.jsonl").write_text('{"a": 2}\n')
    (x,) = files("hf://datasets/owner/name", tmp_path)
    assert x == DataFile(f"hf://datasets/owner/name@{'a' * 40}/data/x.jsonl", "data/x.jsonl", 9)
    assert [row.value for row in rows(x)] == [{"a": 1}]
    same, other = files("hf://datasets/owner/name@v1/data/*.jsonl", tmp_path)
    assert identity(same) == identity(x) == identity(file_at(x.uri))
    assert identity(other) != identity(x)
    assert names(f"hf://datasets/owner/name@{'b' * 40}/data/x.jsonl", tmp_path) == ["x.jsonl"]


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("hf://owner/name/x.jsonl", "expected hf://datasets/OWNER/NAME"),
        ("hf://datasets/owner", "expected hf://datasets/OWNER/NAME"),
        ("hf://datasets/owner/name@v9/x.jsonl", "cannot be reached (KeyError: 'v9')"),
        ("hf://datasets/owner/name@refs%2Fconvert%2Fparquet/x.jsonl", f"name@{'c' * 40}/x.jsonl does not exist"),
        ("hf://datasets/owner/name@refs/convert/parquet/x.jsonl", f"name@{'c' * 40}/x.jsonl does not exist"),
    ],
)
def test_an_address_on_the_hub_that_is_none(location: str, reason: str, hub: Path, tmp_path: Path) -> None:
    assert reason in refused(location, tmp_path)


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("a.b", "axb", False),
        ("*.jsonl", "x/y.jsonl", False),
        ("**/x", "x", True),
        ("**/x", "a/b/x", True),
        ("**/x", "ax", False),
        ("[!a-c]?", "dx", True),
        ("[!a-c]?", "bx", False),
        ("a/**", "a/b/c", True),
    ],
)
def test_globs_in_stores(pattern: str, name: str, matches: bool) -> None:
    assert bool(_expression(pattern).fullmatch(name)) == matches


def test_importing_the_readers_is_light() -> None:
    program = "import sys, stages.readers\nprint(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"torch", "ray", "transformers", "huggingface_hub", "fsspec", "ijson"}
