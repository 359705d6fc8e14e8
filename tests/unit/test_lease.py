"""The lease of a schedule: one of several hosts has it, and it goes on when that one is gone."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipelines.run.store import ArtifactStore
from pipelines.schedule import keeper, lease
from pipelines.schedule.lease import Holder, hold, holder
from stages.base import StageError
from stages.io.store import Store, StoreError
from tests import s3

FOLDER = "schedules/nightly/lease"
LONG = 60.0


@pytest.fixture(scope="module")
def bucket() -> Iterator[s3.Bucket]:
    with s3.bucket() as made:
        yield made


@pytest.fixture(params=["local", "remote"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    """The same tests hold for a local disk and for a bucket."""
    if request.param == "local":
        return ArtifactStore(str(tmp_path / "store"))
    request.getfixturevalue("bucket")
    return ArtifactStore(f"s3://rondo/lease-{tmp_path.name}")


@pytest.fixture
def disk(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "store"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A beat every hundredth of a second, whatever the expiry."""
    monkeypatch.setattr(keeper, "_BEATS", LONG * 100)


def unlost() -> None:
    raise AssertionError("the lease was lost")


def take(store: ArtifactStore, seconds: float = LONG) -> Any:
    return hold(store, "nightly", seconds, unlost)


def beat(store: ArtifactStore, number: int = 1) -> bytes | None:
    return store.store.read(f"{FOLDER}/{number:06d}.beat")


def until(condition: Any) -> None:
    """Waits for what is about to happen in a thread."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def crashed(store: ArtifactStore, number: int = 1, seconds: float = LONG, beats: bool = True) -> None:
    """What a holder leaves that was killed a moment ago."""
    entry = {"host": "elsewhere", "process": 7, "since": "2026-01-01T00:00:00+00:00", "seconds": seconds, "token": "x"}
    assert store.create_json(f"{FOLDER}/{number:06d}.json", entry)
    if beats:
        store.store.write(f"{FOLDER}/{number:06d}.beat", b"held")


def age(store: ArtifactStore, seconds: float, *names: str) -> None:
    """Makes what the store has so much older."""
    for name in names or store.store.names(FOLDER):
        if store.store.is_local:
            path = Path(store.location, FOLDER, name)
            os.utime(path, (path.stat().st_mtime - seconds,) * 2)
        else:
            from moto.core.models import DEFAULT_ACCOUNT_ID
            from moto.s3.models import s3_backends

            key = f"{store.location.removeprefix('s3://rondo/')}/{FOLDER}/{name}"
            objects = s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets["rondo"].keys
            objects[key].last_modified -= timedelta(seconds=seconds)


def names(store: ArtifactStore) -> list[str]:
    return store.store.names(FOLDER)


@contextmanager
def losing(store: ArtifactStore, seconds: float = LONG) -> Iterator[tuple[threading.Event, list[str]]]:
    """Holds the lease; the event is set when it is lost, and the list has as many words as it was."""
    event, calls = threading.Event(), list[str]()

    def lost() -> None:
        calls.append("lost")
        event.set()

    with hold(store, "nightly", seconds, lost) as other:
        assert other is None
        yield event, calls


# Taking it and giving it back


def test_it_is_taken_and_given_back(store: ArtifactStore) -> None:
    assert holder(store, "nightly") is None
    with take(store) as other:
        assert other is None
        now = holder(store, "nightly")
        assert now is not None
        assert (now.number, now.host, now.process, now.seconds) == (1, socket.gethostname(), os.getpid(), LONG)
        assert not now.expired
        assert 0 <= now.silent < LONG
        assert now.since.endswith("+00:00")
    assert holder(store, "nightly") is None
    with take(store) as other:
        assert other is None
        assert [each for each in names(store) if each.endswith("json")] == ["000001.json", "000002.json"]


def test_whoever_asks_meanwhile_is_told_who_has_it(store: ArtifactStore) -> None:
    with take(store):
        before = [name for name in names(store) if name.endswith("json")]
        with take(store) as other:
            assert isinstance(other, Holder)
            assert (other.number, other.process) == (1, os.getpid())
        assert [name for name in names(store) if name.endswith("json")] == before
        assert holder(store, "nightly") is not None, "the second one gave it back"
    with hold(store, "weather", LONG, unlost) as other:
        assert other is None


def test_what_is_asked_leaves_nothing(store: ArtifactStore) -> None:
    with take(store):
        until(lambda: beat(store) == b"held")
        holder(store, "nightly")
        assert names(store) == ["000001.beat", "000001.json"]


def test_it_is_given_back_after_an_error(disk: ArtifactStore) -> None:
    with pytest.raises(KeyError), take(disk):
        raise KeyError
    assert holder(disk, "nightly") is None


def test_of_many_that_take_it_at_once_one_has_it(store: ArtifactStore) -> None:
    begin, end = threading.Barrier(6), threading.Barrier(6)
    had: list[Holder | None] = []

    def ask() -> None:
        begin.wait()
        with take(store) as other:
            had.append(other)
            end.wait(60)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert had.count(None) == 1
    assert {each.number for each in had if each} == {1}


def test_few_old_entries_stay(store: ArtifactStore) -> None:
    for _ in range(6):
        with take(store):
            pass
    assert names(store) == [f"{number:06d}.{suffix}" for number in (4, 5, 6) for suffix in ("beat", "json")]


def test_other_files_do_not_count(disk: ArtifactStore) -> None:
    crashed(disk)
    for name in ("000009.json~", "9.json", "notes.json", "000009", "probe-0a"):
        (Path(disk.location) / FOLDER / name).write_text("mine")
    now = holder(disk, "nightly")
    assert now is not None
    assert now.number == 1


# A holder that died


@pytest.mark.parametrize("beats", [True, False])
def test_one_that_is_silent_for_too_long_is_replaced(store: ArtifactStore, beats: bool) -> None:
    crashed(store, seconds=100, beats=beats)
    age(store, 90)
    with take(store) as other:
        assert other is not None
        assert (other.number, other.host, other.process, other.seconds) == (1, "elsewhere", 7, 100)
        assert 88 <= other.silent < 100
    age(store, 12)
    gone = holder(store, "nightly")
    assert gone is not None
    assert gone.expired
    with take(store) as other:
        assert other is None
        now = holder(store, "nightly")
        assert now is not None
        assert (now.number, now.process, now.expired) == (2, os.getpid(), False)


def test_its_beats_keep_it_however_old_the_entry_is(store: ArtifactStore) -> None:
    crashed(store)
    age(store, 10 * LONG, "000001.json")
    now = holder(store, "nightly")
    assert now is not None
    assert not now.expired


def test_the_clock_of_the_host_does_not_matter(disk: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    crashed(disk)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    now = holder(disk, "nightly")
    assert now is not None
    assert now.silent < LONG


def test_whole_seconds_count_for_the_holder(disk: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 1.999, which the store calls 1, to 5.0 it is little more than three seconds."""
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    monkeypatch.setattr(
        Store, "modified", lambda self, place: begin + timedelta(seconds=5 if "/probe-" in place else 1)
    )
    crashed(disk, seconds=3)
    now = holder(disk, "nightly")
    assert now is not None
    assert (now.silent, now.expired) == (3.0, False)


def test_one_that_was_so_slow_that_its_number_was_deleted_has_not_got_it(
    disk: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looked when 1 was expired; by now 2 to 5 were taken, and 2 is deleted."""
    crashed(disk)
    age(disk, 10 * LONG)
    real = Store.create

    def slow(self: Store, place: str, data: bytes) -> bool:
        monkeypatch.setattr(Store, "create", real)
        crashed(disk, 5)
        return self.create(place, data)

    monkeypatch.setattr(Store, "create", slow)
    with take(disk) as other:
        assert other is not None
        assert other.number == 5
    assert names(disk) == ["000001.beat", "000001.json", "000005.beat", "000005.json"]


# Keeping it


def test_beats_go_on_until_the_end(store: ArtifactStore, quick: None) -> None:
    with take(store):
        until(lambda: beat(store) == b"held")
        store.store.delete(f"{FOLDER}/000001.beat")
        until(lambda: beat(store) == b"held")
    assert beat(store) == b"released"


def test_a_higher_entry_takes_it_away(store: ArtifactStore, quick: None) -> None:
    with losing(store) as (lost, calls):
        until(lambda: beat(store) == b"held")
        crashed(store, 2)
        assert lost.wait(20)
    assert calls == ["lost"]
    now = holder(store, "nightly")
    assert now is not None
    assert now.number == 2
    assert beat(store) == b"held", "what is lost is not given back"


def test_after_sleep_nothing_is_beaten_before_a_look(disk: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one has it before this one's first beat."""
    writes: list[str] = []
    real = lease._create

    def sleepy(*args: Any) -> bool:
        had = real(*args)
        crashed(disk, 2)
        monkeypatch.setattr(Store, "write", lambda self, place, data: writes.append(place))
        return had

    monkeypatch.setattr(lease, "_create", sleepy)
    with losing(disk) as (lost, _):
        assert lost.wait(20)
    assert writes == []


def test_an_entry_that_a_person_deleted_is_lost_and_its_number_is_not_used_again(
    store: ArtifactStore, quick: None
) -> None:
    with losing(store) as (lost, _):
        until(lambda: beat(store) == b"held")
        store.store.delete(f"{FOLDER}/000001.json")
        assert lost.wait(20)
    with take(store) as other:
        assert other is None
        now = holder(store, "nightly")
        assert now is not None
        assert now.number == 2


@pytest.mark.parametrize("how", ["raises", "hangs", "has a bug"])
def test_without_beats_it_is_lost_before_it_expires(
    disk: ArtifactStore, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    go_on = threading.Event()

    def away(self: Store, place: str, data: bytes) -> None:
        if how == "hangs":
            go_on.wait(60)
        raise RuntimeError if how == "has a bug" else StoreError("away")

    monkeypatch.setattr(keeper, "_PARTING", 0.01)
    monkeypatch.setattr(Store, "write", away)
    with losing(disk, seconds=0.1) as (lost, calls):
        assert lost.wait(20)
    assert calls == ["lost"]
    go_on.set()


def test_a_beat_that_fails_now_and_then_does_not_matter(
    disk: ArtifactStore, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    tried: list[str] = []
    with take(disk):
        until(lambda: beat(disk) == b"held")
        with monkeypatch.context() as patched:
            patched.setattr(Store, "names", lambda self, place: tried.append(place) or _away())
            until(lambda: len(tried) > 2)
        (Path(disk.location) / FOLDER / "000001.beat").unlink()
        until(lambda: beat(disk) == b"held")


def _away() -> list[str]:
    raise StoreError("away")


def test_a_beat_that_got_through_puts_off_the_end() -> None:
    beats, lost = list[bytes](), threading.Event()
    heard = time.monotonic() + 0.2 - 0.8 * LONG
    kept = keeper.Keeper(LONG, heard, gone=lambda: False, beat=beats.append, lost=lost.set)
    until(lambda: beats)
    assert not lost.wait(0.25)
    kept.end()
    assert beats == [keeper.HELD, keeper.RELEASED]


def test_it_is_lost_once_where_both_threads_find_it_so() -> None:
    calls, known = list[str](), threading.Event()

    def lost() -> None:
        calls.append("lost")
        known.set()

    heard = time.monotonic() - LONG
    kept = keeper.Keeper(LONG, heard, gone=lambda: known.wait(20), beat=lambda what: None, lost=lost)
    assert known.wait(20)
    kept.end()
    assert calls == ["lost"]


def test_where_the_store_is_away_at_the_end_it_expires(disk: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with take(disk):
        until(lambda: beat(disk) == b"held")
        monkeypatch.setattr(Store, "write", lambda self, place, data: _away())
    monkeypatch.undo()
    now = holder(disk, "nightly")
    assert now is not None
    age(disk, 10 * LONG)
    with take(disk) as other:
        assert other is None


def test_the_end_does_not_wait_for_a_store_that_hangs(disk: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, asked = threading.Event(), threading.Event()
    monkeypatch.setattr(keeper, "_PARTING", 0.01)
    with take(disk):
        until(lambda: beat(disk) == b"held")
        real = Store.write
        monkeypatch.setattr(Store, "write", lambda *args: asked.set() or (go_on.wait(60) and real(*args)))
    assert asked.wait(20)
    assert beat(disk) == b"held"
    go_on.set()
    until(lambda: beat(disk) == b"released")


# Stores that cannot do it, and damage


def test_a_store_without_conditional_writes_is_refused(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(self: Store, place: str, data: bytes) -> bool:
        self.write(place, data)
        return True

    monkeypatch.setattr(Store, "create", create)
    with pytest.raises(StageError, match=r"lacks conditional writes \(If-None-Match\); use another store") as raised:
        take(store).__enter__()
    assert store.location in str(raised.value)
    assert names(store) == []


def test_a_store_that_does_not_list_what_was_written_is_refused(
    disk: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashed(disk)
    monkeypatch.setattr(Store, "names", lambda self, place: [])
    with pytest.raises(StageError, match="does not list what was just written"):
        take(disk).__enter__()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": "a"}'])
def test_a_damaged_entry_is_named(store: ArtifactStore, text: str) -> None:
    crashed(store)
    crashed(store, 2)
    store.store.write(f"{FOLDER}/000002.json", text.encode())
    with pytest.raises(StoreError, match=r"nightly/lease/000002.json is damaged.*delete it"):
        holder(store, "nightly")
    with pytest.raises(StoreError, match="is damaged"):
        take(store).__enter__()
    assert "000003.json" not in names(store)


def test_a_store_out_of_reach_is_told(disk: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    crashed(disk)
    monkeypatch.setattr(Store, "write", lambda self, place, data: _away())
    with pytest.raises(StoreError, match="away"):
        holder(disk, "nightly")
