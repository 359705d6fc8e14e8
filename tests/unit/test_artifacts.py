"""The store: whole artifacts or none, on a local disk and in a bucket."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.run.store import ArtifactStore
from stages.io import cache
from stages.io.artifact import Artifact
from stages.io.output import Output
from stages.io.store import Store, StoreError
from tests import s3

MANIFEST = {"key": "step", "summary": {"rows": 2}, "seconds": 1.5, "payload": {"stage": "mix"}}
HOLD = """
import sys, time
from pipelines.run.store import ArtifactStore
with ArtifactStore(sys.argv[1]).lock("step") as had:
    print(had, flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    with s3.bucket() as made:
        yield made.endpoint


@pytest.fixture
def remote(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    """A store in a bucket, as this machine sees it."""
    monkeypatch.setenv("RONDO_CACHE", str(tmp_path / "cache"))
    return ArtifactStore(f"s3://rondo/{tmp_path.name}")


@pytest.fixture(params=["local", "remote"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    """The same tests hold for a local disk and for a bucket."""
    if request.param == "local":
        return ArtifactStore(str(tmp_path / "store"))
    found: ArtifactStore = request.getfixturevalue("remote")
    return found


def written(store: ArtifactStore, fingerprint: str = "abc", text: str = "text", made_from: str = "") -> Output:
    output = store.output(fingerprint, {"input": made_from} if made_from else {})
    write(output, "first", text)
    return output


def write(output: Output, name: str, text: str) -> None:
    with output.part(name) as part:
        (part.folder / "deep").mkdir()
        (part.folder / "deep" / "rows.txt").write_text(text)
        (part.folder / "empty").write_bytes(b"")
        part.counts["rows"] = len(text)


def opened(store: ArtifactStore, fingerprint: str = "abc") -> Artifact:
    manifest = store.manifest(fingerprint, {})
    assert manifest is not None
    return store.open(manifest)


def text_of(artifact: Artifact) -> str:
    return artifact.path("deep/rows.txt").read_text()


def test_what_is_committed_is_there(store: ArtifactStore) -> None:
    store.commit(written(store), MANIFEST)
    artifact = opened(store)
    assert text_of(artifact) == "text"
    assert artifact.path("empty").read_bytes() == b""
    assert (artifact.folder() / "deep" / "rows.txt").read_text() == "text"
    assert artifact.fingerprint == "abc"
    assert artifact.summary == {"rows": 2}
    assert artifact.has("empty")
    assert not artifact.has("deep")
    with pytest.raises(FileNotFoundError, match="nothing"):
        artifact.path("nothing")


def test_the_manifest_keeps_what_was_said_and_lists_the_parts(store: ArtifactStore) -> None:
    output = written(store)
    write(output, "second", "longer text")
    store.commit(output, MANIFEST)
    manifest = store.manifest("abc", {})
    assert manifest is not None
    assert {name: manifest[name] for name in MANIFEST} == MANIFEST
    assert manifest["fingerprint"] == "abc"
    assert [(part["name"], part["files"], part["counts"]) for part in manifest["parts"]] == [
        ("first", {"deep/rows.txt": 4, "empty": 0}, {"rows": 4}),
        ("second", {"deep/rows.txt": 11, "empty": 0}, {"rows": 11}),
    ]
    assert store.manifests() == [manifest]
    assert [(table.name, table.rows) for table in store.open(manifest).tables("empty")] == [("empty", 4), ("empty", 11)]


def test_nothing_is_there_before_the_commit(store: ArtifactStore) -> None:
    """As after a crash: all files are written, and no manifest."""
    written(store)
    assert store.manifest("abc", {}) is None
    assert store.manifests() == []


def test_a_fresh_store_is_empty(store: ArtifactStore) -> None:
    assert store.manifests() == []
    assert store.runs() == []
    assert store.manifest("abc", {}) is None
    assert store.read_run("abc") is None
    assert store.output("abc", {}).done() == {}


def test_finished_parts_count_for_a_later_run_and_unfinished_ones_do_not(store: ArtifactStore) -> None:
    output = written(store)
    with pytest.raises(ZeroDivisionError), output.part("second") as part:
        (part.folder / "half").write_text(f"{1 / 0}")
    again = store.output("abc", {})
    assert list(again.done()) == ["first"]
    assert again.done()["first"] == output.parts[0]


def test_a_part_that_was_finished_before_stays_the_one(store: ArtifactStore) -> None:
    """As where a worker that was given up for lost goes on, or another host makes the same part."""
    one, two = written(store, text="the first"), written(store, text="the second")
    assert two.parts == one.parts
    store.commit(two, MANIFEST)
    assert text_of(opened(store)) == "the first"


def test_what_was_made_of_other_inputs_is_something_else(store: ArtifactStore) -> None:
    store.commit(written(store, text="old", made_from="one"), MANIFEST)
    assert store.manifest("abc", {"input": "two"}) is None
    assert store.output("abc", {"input": "two"}).done() == {}
    store.commit(written(store, text="new", made_from="two"), MANIFEST)
    for made_from, text in (("one", "old"), ("two", "new")):
        manifest = store.manifest("abc", {"input": made_from})
        assert manifest is not None
        assert text_of(store.open(manifest)) == text


def test_of_two_commits_the_first_one_stays(store: ArtifactStore) -> None:
    first, second = written(store), written(store)
    stays = store.commit(second, {**MANIFEST, "seconds": 1.0})
    assert store.commit(first, {**MANIFEST, "seconds": 2.0}) == stays
    assert store.manifest("abc", {}) == stays


def test_the_parts_of_the_commit_that_lost_are_deleted(store: ArtifactStore) -> None:
    """The other has finished a part of both and made another anew, as the first one's records were deleted."""
    first, second = written(store), store.output("abc", {})
    second.parts.append(first.parts[0])
    write(second, "second", "text")
    store.commit(first, MANIFEST)
    store.commit(second, MANIFEST)
    (kept,) = store.open(store.manifest("abc", {}) or {}).parts
    assert kept == first.parts[0]
    assert store.store.names("artifacts/abc/" + first.inputs) == sorted(
        [kept.place.rpartition("/")[2], "manifest.json"]
    )


def test_a_put_that_is_sent_again_after_it_got_through_succeeds(store: ArtifactStore) -> None:
    assert store.store.create("once", b"1")
    assert store.store.create("once", b"1")
    assert not store.store.create("once", b"2")
    assert store.store.read("once") == b"1"


def test_credentials_in_a_location_are_not_kept(endpoint: str) -> None:
    store = ArtifactStore(f"s3://key:secret@rondo/prefix?region=eu-west-1&endpoint_override={endpoint[7:]}&scheme=http")
    assert store.location == "s3://rondo/prefix"
    assert store.runs() == []


def test_discard_deletes_what_nothing_names(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    kept, other = written(store), written(store, "other")
    store.commit(kept, MANIFEST)
    unfinished = written(store, made_from="one")
    left = tmp_path / unfinished.place / "left-by-a-kill"
    older = tmp_path / written(store, made_from="earlier").place
    left.mkdir()
    store.discard(unfinished)
    assert not left.exists()
    assert not list(older.iterdir())
    assert text_of(opened(store)) == "text"
    assert unfinished.done()
    assert (tmp_path / other.parts[0].place).exists()
    store.discard(store.output("never-heard-of", {}))


def test_work_stays_until_the_commit(store: ArtifactStore) -> None:
    output = written(store)
    store.store.write(f"{output.work}/checkpoint", b"step 3")
    store.commit(output, MANIFEST)
    assert store.store.names(output.work) == []


def test_a_damaged_artifact_is_refused_with_advice(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    for name, damage in (("gone", Path.unlink), ("short", lambda path: path.write_text("te"))):
        store.commit(written(store, name), MANIFEST)
        damage(opened(store, name).path("deep/rows.txt"))
        with pytest.raises(StoreError, match="is damaged") as caught:
            opened(store, name).path("deep/rows.txt")
        assert "deep/rows.txt" in str(caught.value)
        assert f"delete {tmp_path / 'store' / 'artifacts' / name}" in str(caught.value)


def test_a_damaged_artifact_in_a_bucket_is_refused(
    remote: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, short = written(remote, "gone"), written(remote, "short")
    for output in (gone, short):
        remote.commit(output, MANIFEST)
    remote.store.remove(gone.parts[0].place)
    remote.store.write(f"{short.parts[0].place}/deep/rows.txt", b"te")
    monkeypatch.setenv("RONDO_CACHE", str(tmp_path / "two"))
    for name in ("gone", "short"):
        with pytest.raises(StoreError, match=r"damaged \(deep/rows.txt\); delete s3://rondo/"):
            opened(remote, name).path("deep/rows.txt")


def test_a_manifest_that_is_no_json_is_a_damaged_artifact(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    output = written(store)
    store.commit(output, MANIFEST)
    (tmp_path / "store" / output.place / "manifest.json").write_text('{"key": ')
    with pytest.raises(StoreError, match="damaged"):
        store.manifest("abc", {})


def test_another_machine_gets_the_artifact_from_the_bucket(
    remote: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote.commit(written(remote), MANIFEST)
    monkeypatch.setenv("RONDO_CACHE", str(tmp_path / "two"))
    path = opened(remote).path("deep/rows.txt")
    assert path.is_relative_to(tmp_path / "two")
    assert path.read_text() == "text"
    path.write_text("te")  # a copy that was cut off
    assert text_of(opened(remote)) == "text"


def test_what_a_killed_worker_was_writing_goes_when_room_is_needed(
    remote: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RONDO_CACHE_GIB", "0")
    with remote.output("abc", {}).writer("first") as part:
        (part.folder / "half").write_text("ha")
        cache.evict(remote.scratch)
        assert part.folder.exists()
        cache.release()  # as the kernel does when the process ends
        cache.evict(remote.scratch)
        assert not part.folder.exists()
        part.folder.mkdir(parents=True)


def test_what_was_written_is_a_copy_that_goes_when_room_is_needed(
    remote: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = written(remote)
    copies = remote.store.local(output.parts[0].place)
    assert set(output.parts[0].files) == {"deep/rows.txt", "empty"}
    monkeypatch.setenv("RONDO_CACHE_GIB", "0")
    cache.evict(remote.scratch)
    assert copies.exists()
    cache.release()
    cache.evict(remote.scratch)
    assert not copies.exists()
    remote.commit(output, MANIFEST)
    assert text_of(opened(remote)) == "text"


def test_a_file_is_fetched_in_ranges(remote: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.io.store._RANGE", 1000)
    content = bytes(range(256)) * 41
    output = remote.output("abc", {})
    with output.part("first") as part:
        (part.folder / "large").write_bytes(content)
    remote.commit(output, MANIFEST)
    monkeypatch.setenv("RONDO_CACHE", str(tmp_path / "two"))
    assert opened(remote).path("large").read_bytes() == content


def test_a_stores_value_can_be_sent_to_another_process(remote: ArtifactStore) -> None:
    import pickle

    sent = pickle.loads(pickle.dumps(written(remote)))
    assert sent.store == remote.store
    assert list(sent.done()) == ["first"]


# The copies on a machine


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "copies"
    cache.release()


def copied(root: Path, place: str, size: int = 1000) -> Path:
    return cache.fetch(root, place, "file", size, lambda target: target.write_bytes(b"x" * size) and None)


def test_a_copy_is_made_once(root: Path) -> None:
    copied(root, "a")
    assert cache.fetch(root, "a", "file", 1000, lambda target: 1 / 0).stat().st_size == 1000  # type: ignore[arg-type,return-value]


def test_copies_above_the_bound_go_the_oldest_first_unless_they_are_used(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RONDO_CACHE_GIB", str(2500 / 2**30))
    a, b = copied(root, "a"), copied(root, "b")
    cache.release()
    c, d = copied(root, "c"), copied(root, "d")
    cache.evict(root)
    assert [path.exists() for path in (a, b, c, d)] == [False, False, True, True]
    copied(root, "a")
    cache.evict(root)
    assert a.exists()  # three are too many, and all are used
    cache.release()
    copied(root, "d")
    cache.evict(root)
    assert [path.exists() for path in (a, c, d)] == [True, False, True]


def test_a_copy_that_was_used_again_is_kept_longer(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RONDO_CACHE_GIB", str(1500 / 2**30))
    monkeypatch.setattr(cache, "_SECONDS", 1e9)
    a, b = copied(root, "a"), copied(root, "b")
    for age, path in ((200, a), (100, b)):
        os.utime(path.parent / ".used", (time.time() - age,) * 2)
    cache.release()
    copied(root, "a")
    cache.release()
    cache.evict(root)
    assert [path.exists() for path in (a, b)] == [True, False]


def test_a_download_that_breaks_leaves_nothing(root: Path) -> None:
    def broken(target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError("lost")

    with pytest.raises(OSError, match="lost"):
        cache.fetch(root, "a", "file", 1000, broken)
    assert not [path for path in (root / "a").iterdir() if not path.name.startswith(".") or "file" in path.name]


# A store that fails


def test_a_store_that_cannot_be_reached_is_said_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("RONDO_STORE_PATIENCE", "0.5")
    store = ArtifactStore(f"s3://rondo/{tmp_path.name}-away")
    with pytest.raises(StoreError, match=r"^store s3://rondo/\S+-away cannot be used: .*127.0.0.1:9") as caught:
        store.runs()
    assert "\n" not in str(caught.value)


def test_a_disk_that_is_full_leaves_nothing_that_counts(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    output = store.output("abc", {})

    def full(self: Store, place: str) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put", full)
        with pytest.raises(OSError, match="No space left"):
            write(output, "first", "text")
    assert output.done() == {}
    assert not list(store.store.local(output.place).iterdir())
    written(store)
    assert list(output.done()) == ["first"]


# Locks and runs


def test_a_lock_is_held_by_one_at_a_time(store: ArtifactStore) -> None:
    with store.lock("step", timeout=0) as first, store.lock("step", timeout=0) as second:
        assert first
        assert not second
        with store.lock("other", timeout=0) as other:
            assert other
    with store.lock("step", timeout=0) as again:
        assert again


def test_a_lock_goes_when_an_error_leaves_it(store: ArtifactStore) -> None:
    with pytest.raises(ZeroDivisionError), store.lock("step"):
        raise ZeroDivisionError
    with store.lock("step", timeout=0) as had:
        assert had


def test_a_lock_is_held_among_processes_and_goes_with_its_holder(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        with store.lock("step", timeout=0) as had:
            assert not had
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with store.lock("step", timeout=0) as had:
        assert had


def test_run_records_are_rewritten_whole_and_listed_oldest_first(store: ArtifactStore) -> None:
    store.write_run("20250102-b", {"status": "running", "steps": [1, 2, 3]})
    store.write_run("20250101-a", {"status": "done"})
    store.write_run("20250102-b", {"status": "dönе"})
    assert store.runs() == ["20250101-a", "20250102-b"]
    assert store.read_run("20250102-b") == {"status": "dönе"}
    assert store.read_run("20250103-c") is None


@pytest.mark.parametrize("location", ["nope://bucket", "FILE", "s3://"])
def test_a_place_that_can_be_no_store_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "FILE").write_text("a file")
    with pytest.raises(StoreError, match=location):
        ArtifactStore(location if "://" in location else str(tmp_path / location))


def test_an_option_of_a_uri_that_is_not_known_is_named() -> None:
    with pytest.raises(StoreError, match="unknown option regoin; known: region, endpoint_override, scheme"):
        ArtifactStore("s3://bucket/prefix?regoin=eu-west-1")


def test_a_file_uri_is_a_local_store(tmp_path: Path) -> None:
    store = ArtifactStore(f"file://{tmp_path}/store")
    output = written(store)
    store.commit(output, MANIFEST)
    manifest = tmp_path / "store" / output.place / "manifest.json"
    assert json.loads(manifest.read_text())["summary"] == {"rows": 2}
    assert opened(store).path("empty").is_relative_to(tmp_path / "store")
