"""The champion of a pipeline: who follows whom, on one host or on several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.run.champions import Champions, Moved, NoChampion, names
from pipelines.run.store import ArtifactStore
from stages.base import StageError
from stages.io.store import StoreError


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "store"))


def policy(store: ArtifactStore, fingerprint: str, produces: str = "policy", attempt: str = "a") -> dict[str, Any]:
    """A committed artifact without files."""
    output = store.output(fingerprint, {"policy": attempt})
    return store.commit(output, {"produces": produces, "summary": {}, "payload": {}, "seconds": 1.0})


def put(store: ArtifactStore, *fingerprints: str) -> Champions:
    champions = Champions(store, "nightly")
    for each in fingerprints:
        policy(store, each)
        champions.put(each, f"try {each}")
    return champions


def held(store: ArtifactStore) -> str:
    return Champions(store, "nightly").require().policy


def test_the_newest_entry_is_the_champion_and_all_are_kept(store: ArtifactStore) -> None:
    put(store, "aa", "bb")
    found = Champions(store, "nightly")
    assert [(each.number, each.policy, each.reason) for each in found.history] == [
        (1, "aa", "try aa"),
        (2, "bb", "try bb"),
    ]
    assert names(store) == ["nightly"]


def test_of_two_that_follow_the_same_champion_one_wins(store: ArtifactStore) -> None:
    put(store, "aa", "bb", "cc")
    first, second = Champions(store, "nightly"), Champions(store, "nightly")
    first.put("aa", "first")
    with pytest.raises(Moved, match="changed by another command"):
        second.put("bb", "second")
    assert Champions(store, "nightly").require().reason == "first"


def test_rolling_back_goes_on_from_where_it_went_back_to(store: ArtifactStore) -> None:
    champions = put(store, "aa", "bb", "cc")
    assert champions.roll_back(1, "cc is rude").policy == "bb"
    assert held(store) == "bb"
    assert Champions(store, "nightly").roll_back(1, "bb too").policy == "aa"
    policy(store, "dd")
    Champions(store, "nightly").put("dd", "better")
    assert Champions(store, "nightly").roll_back(1, "worse").policy == "aa"
    assert Champions(store, "nightly").require().reason == "worse"


def test_what_was_rolled_back_is_stepped_over(store: ArtifactStore) -> None:
    champions = put(store, "aa", "bb", "cc")
    champions.roll_back(1, "cc is rude")
    policy(store, "dd")
    champions.put("dd", "better")
    assert champions.roll_back(2, "both").policy == "aa"


def test_other_files_beside_the_entries_do_not_count(store: ArtifactStore) -> None:
    put(store, "aa")
    for name in ("000002.json~", "notes.json", "000003"):
        (Path(store.location) / "champions/nightly" / name).write_text("mine")
    assert held(store) == "aa"


@pytest.mark.parametrize("name", ["../artifacts", "", "a/b", "Nightly"])
def test_what_no_pipeline_can_be_called(store: ArtifactStore, name: str) -> None:
    with pytest.raises(NoChampion, match=f"'{name}' is no pipeline's name"):
        Champions(store, name)


def test_rolling_back_several_at_once(store: ArtifactStore) -> None:
    assert put(store, "aa", "bb", "cc").roll_back(2, "both").policy == "aa"


def test_a_rollback_names_the_entry_whose_evidence_holds(store: ArtifactStore) -> None:
    policy(store, "aa")
    champions = Champions(store, "nightly")
    (inputs,) = store.store.names("artifacts/aa")
    champions.move("aa", inputs, "won", run="run-1", evidence={"win_rate": 0.7})
    policy(store, "bb")
    champions.put("bb", "by hand")
    restored = Champions(store, "nightly").roll_back(1, "bb is rude")
    assert (restored.restores, restored.run, restored.evidence) == (1, None, {})
    first = Champions(store, "nightly").history[0]
    assert (first.run, first.evidence) == ("run-1", {"win_rate": 0.7})


def test_a_damaged_entry_that_was_deleted_is_stepped_over(store: ArtifactStore) -> None:
    put(store, "aa", "bb", "cc")
    (Path(store.location) / "champions/nightly/000002.json").unlink()
    assert Champions(store, "nightly").roll_back(1, "back").policy == "aa"


def test_past_the_beginning_nothing_is_changed(store: ArtifactStore) -> None:
    champions = put(store, "aa", "bb")
    with pytest.raises(NoChampion, match=r"2 back is past the beginning; before this champion: 1 change$"):
        champions.roll_back(2, "far")
    assert held(store) == "bb"


def test_a_policy_that_was_deleted_is_not_gone_back_to(store: ArtifactStore) -> None:
    champions = put(store, "aa", "bb")
    store.store.remove("artifacts/aa")
    with pytest.raises(StoreError, match=r"aa is not in .* any more"):
        champions.roll_back(1, "back")
    assert held(store) == "bb"


def test_without_a_champion_those_that_there_are_are_named(store: ArtifactStore) -> None:
    with pytest.raises(NoChampion, match="there is none yet"):
        Champions(store, "nightly").require()
    put(store, "aa")
    with pytest.raises(NoChampion, match='did you mean "nightly"'):
        Champions(store, "nigthly").require()
    with pytest.raises(NoChampion, match="there are: nightly"):
        Champions(store, "weather").require()


@pytest.mark.parametrize("given", ["zz", "", "ab", "data"])
def test_what_is_set_is_one_policy_of_the_store(store: ArtifactStore, given: str) -> None:
    policy(store, "ab1")
    policy(store, "ab2")
    policy(store, "data", produces="tokens")
    with pytest.raises(StageError, match="several policies begin so: ab1, ab2" if given == "ab" else "no policy"):
        Champions(store, "nightly").put(given, "try")
    assert names(store) == []


def test_of_several_attempts_the_latest_is_set(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    places = {}
    for attempt in ("b", "a"):
        manifest = policy(store, "ab", attempt=attempt)
        place = f"{store.output('ab', {'policy': attempt}).place}/manifest.json"
        places[attempt] = place.split("/")[2]
        when = {"b": "2026-01-02", "a": "2026-01-01"}[attempt]
        text = (Path(store.location) / place).read_text().replace(str(manifest["committed"]), when)
        (Path(store.location) / place).write_text(text)
    assert Champions(store, "nightly").put("ab", "try").inputs == places["b"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"number": 1}', '{"number": "x", "policy": "aa"}'])
def test_a_damaged_entry_is_named(store: ArtifactStore, text: str) -> None:
    put(store, "aa", "bb")
    (Path(store.location) / "champions/nightly/000002.json").write_text(text)
    with pytest.raises(StoreError, match=r"champions/nightly/000002.json is damaged.*delete it"):
        Champions(store, "nightly")
