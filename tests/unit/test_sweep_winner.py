"""What a sweep leaves to go on with: a command, and a spec, that mean the training that won."""

from __future__ import annotations

import shlex
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.plan import rounds
from pipelines.spec import load, yamlfile
from pipelines.sweep import winner
from pipelines.sweep.trials import Space
from tests.unit import workspace
from tests.unit.test_sweep_checks import HEAD

SPEC = HEAD + "train: {loss: simpo}\nsweep: {space: {beta: [0.1, 1]}}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "there").mkdir()
    return workspace.make(tmp_path / "there")


def fingerprint(file: Path | str, *overrides: str) -> str:
    loaded = load.load(str(file), overrides)
    return rounds.plan(loaded.spec, loaded.path.parent).rounds[-1].train.fingerprint


@pytest.mark.parametrize(
    "point",
    [
        {"beta": 5e-07, "learning_rate": 1.2345678901234567e-05, "batch_size": 16},
        {"loss": "ipo", "lora.rank": 8, "wpo": True},
        {"loss.gamma": 0.25, "loss.label_smoothing": 0.1},
        {"loss": {"use": "simpo", "gamma": 0.75}},
        {"loss": "sigmoid", "loss.label_smoothing": 0.0},
        {"divergence.alpha": 0.25, "divergence": "alpha", "loss": "sigmoid"},
        {"lora.target_modules": ["q_proj", "v_proj"], "length_normalise": False},
        {"schedule": "constant", "quantization": None},
    ],
    ids=str,
)
def test_the_command_means_the_training_that_won(folder: Path, point: dict[str, Any]) -> None:
    loaded = workspace.loaded(folder, SPEC, "train.epochs=2", "sweep.trials=2")
    words = shlex.split(winner.run_command(loaded, 1, point, str(Path.cwd() / ".rondo")))
    overrides = [word for before, word in pairwise(words) if before == "--set"]
    assert overrides[0] == "train.epochs=2"
    assert not any(text.startswith("sweep.") for text in overrides)
    trained = Space(loaded.spec, folder, 1).round(point).train.fingerprint
    assert fingerprint(loaded.path, *overrides) == trained


@pytest.mark.parametrize("value", ["[1]: {a}", "true", "1e-3", "a: b", "x #y", "", "-1", "null", "it's"])
def test_text_stays_text(value: str) -> None:
    assert yamlfile.scalar(winner._text(value)) == value


def test_the_command_counts_where_values_change_by_round(folder: Path) -> None:
    text = workspace.SPEC + "rounds: 2\niterate: {train: {1: {learning_rate: 0.01, epochs: 2}, 2: {batch_size: 4}}}\n"
    text += "sweep: {space: {learning_rate: [0.1, 0.2]}, objective: win_rate, search: grid, scheduler: none}\n"
    loaded = workspace.loaded(folder, text)
    for number in (1, 2):
        words = shlex.split(winner.run_command(loaded, number, {"learning_rate": 0.2}, "s"))
        (override,) = [word for word in words if word.startswith("iterate.train=")]
        made = rounds.plan(workspace.loaded(folder, text, override).spec, folder).rounds[number - 1].train
        assert made.fingerprint == Space(loaded.spec, folder, number).round({"learning_rate": 0.2}).train.fingerprint


def test_the_command_has_no_secrets(folder: Path) -> None:
    loaded = replace(workspace.loaded(folder, SPEC), overrides=("policy.model=hf_abcdefghijklmnopqrstuvwx",))
    assert "hf_" not in winner.run_command(loaded, 1, {"beta": 0.1}, "s")


def test_the_command_names_a_store_that_is_not_the_usual_one(folder: Path) -> None:
    loaded = workspace.loaded(folder, SPEC)
    assert winner.run_command(loaded, 1, {}, "s3://b/p").endswith("--store s3://b/p")


@pytest.mark.parametrize("place", ["beside", "elsewhere"])
def test_the_spec_runs_as_it_is(folder: Path, place: str) -> None:
    text = SPEC + f"prompts: {{heldout: {folder}/heldout.jsonl}}\njudge: {{use: sentiment}}\n"
    loaded = workspace.loaded(folder, text, "train.epochs=2")
    best = winner.resolved(loaded.spec, {1: {"beta": 0.25, "loss.gamma": 0.3}})
    file = winner.write(best, loaded, None if place == "beside" else Path("new/best.yaml"))
    assert file is not None
    assert file == (folder / "spec-best.yaml" if place == "beside" else Path("new/best.yaml"))
    document = yaml.safe_load(file.read_text())
    assert "sweep" not in document
    assert Path(document["policy"]["model"]).is_absolute() == (place == "elsewhere")
    again = load.load(str(file))
    assert rounds.plan(again.spec, again.path.parent).policy.fingerprint == (
        rounds.plan(best, folder).policy.fingerprint
    )


def test_a_bundled_recipe_leaves_its_spec_in_the_current_folder(folder: Path) -> None:
    loaded = load.load("sweep")
    best = winner.resolved(loaded.spec, {1: {"beta": 0.2}})
    file = winner.write(best, loaded, None)
    assert file is not None
    assert file == Path.cwd() / "sweep-best.yaml"
    assert fingerprint(file) == fingerprint("sweep", "train.beta=0.2")


def test_a_folder_that_cannot_be_written_to_is_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = workspace.loaded(folder, SPEC)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert winner.write(loaded.spec, loaded, None) is None
    assert not (folder / "spec-best.yaml").exists()


def test_a_file_that_a_person_wrote_stays(folder: Path) -> None:
    loaded = workspace.loaded(folder, SPEC)
    best = winner.resolved(loaded.spec, {1: {"beta": 0.2}})
    own = folder / "spec-best.yaml"
    own.write_text("mine")
    assert winner.write(best, loaded, None) == folder / "spec-best-sweep.yaml"
    assert own.read_text() == "mine"
    assert winner.write(best, loaded, None) == folder / "spec-best-sweep.yaml"


def test_winners_of_several_rounds_stand_by_their_rounds(folder: Path) -> None:
    text = workspace.SPEC + "rounds: 3\ntrain: {epochs: 2}\niterate: {train: {2: {epochs: 3}}}\n"
    loaded = workspace.loaded(folder, text + "sweep: {space: {beta: [1, 2]}, objective: win_rate, search: grid, "
                                             "scheduler: none}\n")  # fmt: skip
    best = winner.resolved(loaded.spec, {1: {"beta": 0.5}, 3: {"beta": 0.7}})
    trained = [made.train.config for made in rounds.plan(best, folder).rounds]
    assert [(config.beta, config.epochs) for config in trained] == [(0.5, 2), (0.5, 3), (0.7, 3)]  # type: ignore[attr-defined]
    first = loaded.spec.model_copy(update={"iterate": best.iterate.model_copy(update={"train": {1: {"beta": 0.5}}})})
    command = winner.run_command(replace(loaded, spec=first), 3, {"beta": 0.7}, "s")
    (override,) = [word for word in shlex.split(command) if word.startswith("iterate.train=")]
    third = [made.train.config for made in rounds.plan(workspace.loaded(folder, text, override).spec, folder).rounds]
    assert [config.beta for config in third] == [0.5, 0.5, 0.7]  # type: ignore[attr-defined]
