"""Champions from the command line, and specs that start from one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.plan import rounds
from pipelines.plan.base_model import base_step
from pipelines.plan.steps import Step, walk
from pipelines.run.champions import Champions, NoChampion, source
from pipelines.run.runner import Committed, Runner, StepFailed
from pipelines.run.store import ArtifactStore
from pipelines.spec import load
from pipelines.spec.problems import SpecError
from pipelines.sweep import winner
from stages.catalog import ENCODE
from stages.data.config import EncodeConfig
from stages.policy.config import ModelSource
from tests.unit import workspace
from tests.unit.steps import Recorder

FILES = ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja")


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "store"))


def policy(store: ArtifactStore, fingerprint: str) -> None:
    """A committed policy whose files only look like a model's."""
    output = store.output(fingerprint, {"policy": "a"})
    with output.part("policy") as part:
        (part.folder / "model").mkdir()
        for name in FILES:
            (part.folder / "model" / name).write_text("{}")
    store.commit(output, {"produces": "policy", "summary": {}, "payload": {"stage": "train"}, "seconds": 1.0})


def champions(store: ArtifactStore, *fingerprints: str) -> Champions:
    found = Champions(store, "nightly")
    for each in fingerprints:
        policy(store, each)
        found.put(each, f"try {each}")
    return found


def command(store: ArtifactStore, *arguments: str) -> Any:
    return CliRunner().invoke(app, ["champion", *arguments, "--store", store.location])


def test_the_command_shows_the_champion_and_those_before_it(store: ArtifactStore) -> None:
    champions(store, "aaaa", "bbbb")
    lines = command(store, "nightly").output.splitlines()
    assert ["champion" in line for line in lines] == [True, False]
    assert "bbbb" in lines[0]
    assert "try aaaa" in lines[1]
    document = json.loads(command(store, "nightly", "--json").output)
    assert (document["champion"]["policy"], len(document["history"])) == ("bbbb", 2)
    assert json.loads(command(store, "--json").output)["nightly"]["policy"] == "bbbb"


def test_what_was_measured_is_shown_with_its_interval(store: ArtifactStore) -> None:
    found = champions(store, "aaaa")
    rate = {"mean": 0.75, "low": 0.6, "high": 0.9, "prompts": 40}
    found.move("aaaa", "x", "won", run="night-1", evidence={"win_rate": rate})
    assert "0.750" in command(store, "nightly").output
    assert "0.600 to 0.900 on 40 prompts" in command(store, "nightly").output


@pytest.mark.parametrize(
    ("arguments", "policy_now"),
    [
        (("--rollback",), "bbbb"),
        (("--rollback", "1"), "bbbb"),
        (("--rollback", "2"), "aaaa"),
        (("--set", "aa"), "aaaa"),
    ],
)
def test_it_is_changed_by_hand_with_a_reason_that_is_kept(
    store: ArtifactStore, arguments: tuple[str, ...], policy_now: str
) -> None:
    champions(store, "aaaa", "bbbb", "cccc")
    done = command(store, "nightly", "--reason", "users complained", *arguments)
    assert done.exit_code == 0, done.output
    now = Champions(store, "nightly").require()
    assert (now.policy, now.reason, now.number) == (policy_now, "users complained", 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nightly", "--rollback"), "--reason"),
        (("nightly", "--rollback", "--reason", " "), "--reason"),
        (("nightly", "--rollback", "9", "--reason", "x"), "past the beginning"),
        (("nightly", "--set", "ff", "--reason", "x"), "no policy"),
        (("nightly", "--set", "aa", "--rollback", "--reason", "x"), "give one"),
        (("nigthly",), 'did you mean "nightly"'),
        (("--rollback", "--reason", "x"), "of which pipeline"),
        (("Nightly!",), "lower-case"),
    ],
)
def test_what_cannot_be_done_is_one_message_and_changes_nothing(
    store: ArtifactStore, arguments: tuple[str, ...], message: str
) -> None:
    champions(store, "aaaa", "bbbb")
    done = command(store, *arguments)
    assert (done.exit_code, message in done.output) == (2, True), done.output
    assert len(Champions(store, "nightly").history) == 2


def test_a_spec_starts_from_the_champion_that_there_is_now(tmp_path: Path, store: ArtifactStore) -> None:
    champions(store, "aaaa", "bbbb")
    spec = workspace.spec(
        workspace.make(tmp_path), workspace.OFFLINE.replace("model: model", "model: champion://nightly")
    )
    loaded = load.load(str(spec), (), lambda named: source(store, named))
    assert loaded.spec.policy.model == "champion://nightly@2"
    base = base_step(loaded.spec.policy, tmp_path)
    assert base.fingerprint == "bbbb"
    assert Committed(store)(base) == store.manifest_at("bbbb", Champions(store, "nightly").require().inputs)
    older = source(store, ModelSource(model="champion://nightly@1"))
    assert older.made[0] == "aaaa"
    assert (older.folder / "tokenizer.json").is_file()
    assert "made" not in winner.text(loaded.spec, tmp_path)
    assert "champion://nightly@2" in winner.text(loaded.spec, tmp_path)


def test_what_is_made_from_a_champion_is_found_again(tmp_path: Path, store: ArtifactStore) -> None:
    champions(store, "aaaa")
    base = base_step(source(store, ModelSource(model="champion://nightly")), tmp_path)
    step = Step("x", ENCODE, EncodeConfig(), {"policy": base})
    runner = Runner(store, Recorder(), lambda: None)
    assert walk([step]) == [step]  # a champion is not made
    assert runner.artifact(base) is not None
    store.commit(runner.output(step), {"produces": "tokens", "summary": {}, "payload": step.payload, "seconds": 0.0})
    assert Committed(store)(step) is not None


def test_a_champion_that_was_deleted_is_not_made_anew(tmp_path: Path, store: ArtifactStore) -> None:
    champions(store, "aaaa")
    base = base_step(source(store, ModelSource(model="champion://nightly")), tmp_path)
    store.store.remove("artifacts/aaaa")
    with pytest.raises(StepFailed) as failure:
        Runner(store, Recorder(), lambda: None).run([Step("x", ENCODE, EncodeConfig(), {"policy": base})])
    assert "artifacts/aaaa/" in str(failure.value)
    with pytest.raises(NoChampion, match="was deleted"):
        source(store, ModelSource(model="champion://nightly"))


@pytest.mark.parametrize(
    ("policy_text", "key", "message"),
    [
        ("model: champion://other", "policy.model", "has no champion"),
        ("model: champion://nightly@7", "policy.model", "there are 1"),
        ("model: champion://nightly, adapter: model", "policy.adapter", "leave the adapter out"),
        ("model: champion://nightly, revision: main", "policy.revision", "only hub models"),
    ],
)
def test_a_champion_that_cannot_be_started_from(
    tmp_path: Path, store: ArtifactStore, policy_text: str, key: str, message: str
) -> None:
    champions(store, "aaaa")
    spec = workspace.spec(workspace.make(tmp_path), workspace.OFFLINE.replace("model: model", policy_text))
    with pytest.raises(SpecError) as error:
        load.load(str(spec), (), lambda named: source(store, named))
    (problem,) = error.value.problems
    assert key in problem.where
    assert message in problem.message


def test_where_the_store_is_elsewhere_the_champion_stays_open(tmp_path: Path) -> None:
    text = workspace.OFFLINE.replace("model: model", "model: champion://nightly")
    loaded = workspace.loaded(workspace.make(tmp_path), text)
    assert rounds.plan(loaded.spec, tmp_path).steps
    looked, _ = replace(loaded).look()
    assert any("looked up where the run starts" in note for note in looked.notes)


def test_what_is_no_pipeline_s_is_not_listed(tmp_path: Path, store: ArtifactStore) -> None:
    champions(store, "aaaa")
    (tmp_path / "store" / "champions" / "emptied").mkdir()
    (tmp_path / "store" / "champions" / "UPPER").mkdir()
    assert list(json.loads(command(store, "--json").output)) == ["nightly"]
    assert "mean" not in command(store, "emptied").output


def test_a_damaged_entry_is_one_message(store: ArtifactStore) -> None:
    champions(store, "aaaa")
    store.store.write("champions/nightly/000001.json", b"{}")
    done = command(store)
    assert (done.exit_code, "is damaged" in done.output) == (2, True)


def test_a_rollback_after_a_rollback_and_a_new_champion_goes_on_from_what_was_restored(store: ArtifactStore) -> None:
    found = champions(store, "aaaa", "bbbb")
    found.roll_back(1, "to a")
    policy(store, "cccc")
    found.put("cccc", "new")
    assert found.roll_back(1, "to a again").policy == "aaaa"
    assert [entry.policy for entry in found.history] == ["aaaa", "bbbb", "aaaa", "cccc", "aaaa"]
    with pytest.raises(NoChampion, match="past the beginning"):
        found.roll_back(1, "before a")
