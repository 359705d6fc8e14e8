"""The store: whole artifacts or none, on a local disk and elsewhere."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from pipelines.run.store import ArtifactStore, Attempt, StoreError

MANIFEST = {"key": "step", "summary": {"rows": 2}, "seconds": 1.5, "payload": {"stage": "mix"}}
HOLD = """
import sys, time
from pipelines.run.store import ArtifactStore
with ArtifactStore(sys.argv[1]).lock("step") as had:
    print(had, flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["local", "remote"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    """The same tests hold for a local disk and for a file system that only pyarrow knows."""
    return ArtifactStore(str(tmp_path / "store")) if request.param == "local" else remote(tmp_path)


def remote(tmp_path: Path, machine: str = "one") -> ArtifactStore:
    """A store that is not local, as it is seen by one of several machines."""
    (tmp_path / "bucket").mkdir(exist_ok=True)
    filesystem = pafs.SubTreeFileSystem(str(tmp_path / "bucket"), pafs.LocalFileSystem())
    return ArtifactStore("prefix", tmp_path / machine, filesystem)


def written(store: ArtifactStore, fingerprint: str = "abc", text: str = "text") -> Attempt:
    attempt = store.attempt(fingerprint)
    (attempt.path / "deep").mkdir()
    (attempt.path / "deep" / "rows.txt").write_text(text)
    (attempt.path / "empty").write_bytes(b"")
    return attempt


def test_what_is_committed_is_there(store: ArtifactStore) -> None:
    store.commit(written(store), MANIFEST)
    artifact = store.open("abc")
    assert (artifact.path / "deep" / "rows.txt").read_text() == "text"
    assert (artifact.path / "empty").read_bytes() == b""
    assert artifact.fingerprint == "abc"
    assert artifact.summary == {"rows": 2}


def test_the_manifest_keeps_what_was_said_and_lists_the_files(store: ArtifactStore) -> None:
    store.commit(written(store), MANIFEST)
    manifest = store.manifest("abc")
    assert manifest is not None
    assert {name: manifest[name] for name in MANIFEST} == MANIFEST
    assert manifest["fingerprint"] == "abc"
    assert manifest["files"] == {"deep/rows.txt": 4, "empty": 0}
    assert store.manifests() == [manifest]


def test_nothing_is_there_before_the_commit(store: ArtifactStore) -> None:
    """As after a crash: all files are written, and no manifest."""
    written(store)
    assert store.manifest("abc") is None
    assert store.manifests() == []
    with pytest.raises(StoreError, match="artifact abc is not in the store"):
        store.open("abc")


def test_a_fresh_store_is_empty(store: ArtifactStore) -> None:
    assert store.manifests() == []
    assert store.runs() == []
    assert store.manifest("abc") is None
    assert store.read_run("abc") is None


def test_a_commit_that_breaks_while_files_are_copied_leaves_nothing_visible(tmp_path: Path) -> None:
    store = remote(tmp_path)
    attempt = written(store)
    target = tmp_path / "bucket" / "prefix" / "artifacts" / "abc" / attempt.name
    target.parent.mkdir(parents=True)
    target.write_text("in the way")
    with pytest.raises(OSError, match="deep"):
        store.commit(attempt, MANIFEST)
    assert store.manifest("abc") is None


def test_of_two_attempts_the_first_committed_one_stays(store: ArtifactStore) -> None:
    first, second = written(store, text="first"), written(store, text="the second")
    assert first.path != second.path
    store.commit(second, MANIFEST)
    store.commit(first, MANIFEST)
    assert (store.open("abc").path / "deep" / "rows.txt").read_text() == "the second"


def test_an_attempt_that_knows_of_the_committed_one_replaces_it(store: ArtifactStore) -> None:
    store.commit(written(store, text="old"), MANIFEST)
    store.commit(written(store, text="made anew"), MANIFEST)
    assert (store.open("abc").path / "deep" / "rows.txt").read_text() == "made anew"


def test_credentials_in_a_location_are_not_kept(tmp_path: Path) -> None:
    store = ArtifactStore("s3://key:secret@bucket/prefix", scratch=tmp_path, filesystem=pafs.LocalFileSystem())
    assert store.location == "s3://bucket/prefix"


def test_discard_deletes_what_no_manifest_names(store: ArtifactStore) -> None:
    left, kept, other = written(store), written(store), written(store, "other")
    store.commit(kept, MANIFEST)
    store.discard("abc")
    assert not left.path.exists()
    assert (store.open("abc").path / "deep" / "rows.txt").read_text() == "text"
    assert other.path.exists()
    store.discard("never-heard-of")


def test_discard_without_a_commit_deletes_every_attempt(store: ArtifactStore) -> None:
    attempts = [written(store), written(store)]
    store.discard("abc")
    assert not any(attempt.path.exists() for attempt in attempts)


def test_work_stays_until_the_commit(store: ArtifactStore) -> None:
    (store.work("abc") / "checkpoint").write_text("step 3")
    attempt = written(store)
    assert (store.work("abc") / "checkpoint").read_text() == "step 3"
    store.commit(attempt, MANIFEST)
    assert list(store.work("abc").iterdir()) == []


def test_a_damaged_artifact_is_refused_with_advice(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    for name, damage in (("gone", Path.unlink), ("short", lambda path: path.write_text("te"))):
        store.commit(written(store, name), MANIFEST)
        damage(store.open(name).path / "deep" / "rows.txt")
        with pytest.raises(StoreError, match="is damaged") as caught:
            store.open(name)
        assert "deep/rows.txt" in str(caught.value)
        assert f"delete {tmp_path / 'store' / 'artifacts' / name}" in str(caught.value)


def test_a_damaged_artifact_in_a_remote_store_is_refused(tmp_path: Path) -> None:
    for name, content in (("gone", None), ("short", "te")):
        store = remote(tmp_path)
        attempt = written(store, name)
        store.commit(attempt, MANIFEST)
        file = tmp_path / "bucket" / "prefix" / "artifacts" / name / attempt.name / "deep" / "rows.txt"
        file.unlink() if content is None else file.write_text(content)
        with pytest.raises(StoreError, match="damaged"):
            remote(tmp_path, "two").open(name)


def test_a_manifest_that_is_no_json_is_a_damaged_artifact(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    store.commit(written(store), MANIFEST)
    (tmp_path / "store" / "artifacts" / "abc" / "manifest.json").write_text('{"key": ')
    with pytest.raises(StoreError, match="damaged"):
        store.manifest("abc")


def test_another_machine_gets_the_artifact_from_the_remote_store(tmp_path: Path) -> None:
    one, two = remote(tmp_path, "one"), remote(tmp_path, "two")
    one.commit(written(one), MANIFEST)
    path = two.open("abc").path
    assert path.is_relative_to(tmp_path / "two")
    assert (path / "deep" / "rows.txt").read_text() == "text"


def test_a_copy_that_was_cut_off_is_made_whole(tmp_path: Path) -> None:
    one, two = remote(tmp_path, "one"), remote(tmp_path, "two")
    one.commit(written(one), MANIFEST)
    copy = two.open("abc").path / "deep" / "rows.txt"
    copy.write_text("te")
    assert (two.open("abc").path / "deep" / "rows.txt").read_text() == "text"


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


@pytest.mark.parametrize("location", ["nope://bucket", "FILE"])
def test_a_place_that_can_be_no_store_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "FILE").write_text("a file")
    with pytest.raises(StoreError, match=location):
        ArtifactStore(location if "://" in location else str(tmp_path / location))


def test_a_file_uri_is_a_local_store(tmp_path: Path) -> None:
    store = ArtifactStore(f"file://{tmp_path}/store")
    store.commit(written(store), MANIFEST)
    manifest = tmp_path / "store" / "artifacts" / "abc" / "manifest.json"
    assert json.loads(manifest.read_text())["summary"] == {"rows": 2}
    assert store.open("abc").path.is_relative_to(tmp_path / "store")
