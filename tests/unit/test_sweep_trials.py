"""What a point of a sweep means to the plan: the same steps as those of a run with its values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.plan import rounds
from pipelines.sweep.trials import Space, places
from stages.io.nodes import Node
from stages.train.config import TrainConfig
from tests.unit import workspace
from tests.unit.test_sweep_checks import HEAD

SWEEP = "sweep: {space: {beta: {uniform: [0.1, 1]}, lora.rank: [4, 8], loss: [sigmoid, kto, simpo]}}\n"
POINT = {"beta": 0.25, "lora.rank": 8, "loss": "sigmoid"}
Spaces = Callable[..., Space]


@pytest.fixture
def space(tmp_path: Path) -> Spaces:
    folder = workspace.make(tmp_path)

    def make(*overrides: str, text: str = HEAD + SWEEP, number: int = 1) -> Space:
        return Space(workspace.loaded(folder, text, *overrides).spec, folder, number)

    return make


def test_a_trial_is_the_training_of_a_run_with_its_values(space: Spaces, tmp_path: Path) -> None:
    spec = workspace.loaded(tmp_path, HEAD if space() else "", "train.beta=0.25", "train.lora.rank=8").spec
    run = rounds.plan(spec, tmp_path).rounds[0]
    trial = space().round(POINT)
    assert trial.train.fingerprint == run.train.fingerprint
    assert trial.heldout is not None
    assert run.heldout is not None
    assert trial.heldout.fingerprint == run.heldout.fingerprint


def test_the_other_seeds_are_other_trainings(space: Spaces) -> None:
    made = space("train.seed=3")
    assert [made.round(POINT, seed).train.config.seed for seed in (0, 1, 2)] == [3, 4, 5]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("sweep.trials=99", True),
        ("sweep.parallel=2", True),
        ("sweep.minutes=5", True),
        ("sweep.promote=best", True),
        ("resources.train.micro_batch_tokens=99", True),
        ("train.beta=0.7", True),
        ("train.learning_rate=1.0e-3", False),
        ("data.heldout=0.4", False),
        ("sweep.seed=1", False),
        ("sweep.seeds=2", False),
        ("sweep.search=random", False),
        ("sweep.objective=heldout_loss", False),
        ("sweep.space.beta={uniform: [0.1, 2]}", False),
    ],
)
def test_a_sweep_is_gone_on_with_while_it_looks_for_the_same(space: Spaces, override: str, same: bool) -> None:
    assert (space().name == space(override).name) == same


def test_another_judge_is_another_sweep_where_it_decides(space: Spaces) -> None:
    text = workspace.SPEC + "sweep: {space: {beta: [1, 2]}, objective: win_rate, scheduler: none, search: grid}\n"
    assert space(text=text).name != space("evaluate.samples=5", text=text).name
    held = HEAD + "prompts: {heldout: heldout.jsonl}\njudge: {use: sentiment}\nsweep: {space: {beta: [1, 2]}}\n"
    assert space(text=held).name == space("evaluate.samples=5", text=held).name


def test_what_trials_share_has_no_training_and_all_that_their_losses_need(space: Spaces) -> None:
    shared = space().shared()
    stages = [step.stage.name for step in shared]
    assert "train" not in stages
    assert "heldout" not in stages
    made = {step.fingerprint for step in shared}
    for loss in ("sigmoid", "kto", "simpo"):
        trial = space().round({**POINT, "loss": loss})
        assert trial.heldout is not None
        needed = [*trial.train.inputs.values(), *(v for k, v in trial.heldout.inputs.items() if k != "policy")]
        assert {value.fingerprint for value in needed} <= made, loss
    assert stages.count("reference") == 4  # of training and held-out pairs, with and without other answers
    seen: set[str] = set()
    for step in shared:  # in an order in which it runs
        assert {value.fingerprint for value in step.inputs.values() if hasattr(value, "stage")} <= seen
        seen.add(step.fingerprint)


def test_files_are_looked_at_once(space: Spaces, monkeypatch: pytest.MonkeyPatch) -> None:
    made = space()
    monkeypatch.setattr("pipelines.plan.given.data_identity", lambda file: pytest.fail("looked at again"))
    monkeypatch.setattr("pipelines.plan.base_model.hash_path", lambda path: pytest.fail("hashed again"))
    assert made.round(POINT).train.fingerprint != made.round({**POINT, "beta": 0.3}).train.fingerprint


def test_a_later_round_stands_on_the_earlier_ones_values(space: Spaces) -> None:
    text = workspace.SPEC + "rounds: 3\niterate: {train: {1: {beta: 0.2}}}\nsweep: {space: {beta: [0.1, 0.5]}, "
    text += "objective: win_rate, scheduler: none, search: grid}\n"
    third = space(text=text, number=3).plan({"beta": 0.5})
    assert [made.train.config.beta for made in third.rounds] == [0.2, 0.2, 0.5]  # type: ignore[attr-defined]
    shared = [step.key for step in space(text=text, number=3).shared()]
    assert "round-2/train" in shared
    assert "round-3/train" not in shared


@pytest.mark.parametrize(
    ("resources", "sweep", "machines", "expected"),
    [
        ({}, {}, [{"CPU": 4}], (1, 4)),
        ({}, {"parallel": 2}, [{"CPU": 4}], (2, 2)),
        ({"cpus": 1}, {"parallel": 3}, [{"CPU": 4}], (3, 1)),
        ({"workers": 2}, {}, [{"CPU": 4}], (1, 2)),
        ({"gpus": 1}, {}, [{"CPU": 16, "GPU": 4}], (4, 4)),
        ({"gpus": 1, "workers": 2}, {}, [{"CPU": 16, "GPU": 4}], (2, 4)),
        ({"gpus": 1}, {"trials": 2}, [{"CPU": 16, "GPU": 8}], (2, 8)),
        ({"gpus": 0.5}, {}, [{"CPU": 8, "GPU": 1}], (2, 4)),
    ],
)
def test_how_many_trials_run_at_the_same_time(
    space: Spaces, resources: dict[str, Any], sweep: dict[str, Any], machines: Any, expected: tuple[int, int]
) -> None:
    overrides = [f"resources.train.{name}={value}" for name, value in resources.items()]
    spec = space(*overrides, *(f"sweep.{name}={value}" for name, value in sweep.items())).spec
    assert places(spec, [Node("here", has) for has in machines]) == expected


def test_a_losss_options_come_after_the_loss_however_they_are_ordered() -> None:
    changed = TrainConfig().changed({"loss.gamma": 0.7, "loss": "simpo"})
    assert changed.loss == TrainConfig.model_validate({"loss": {"use": "simpo", "gamma": 0.7}}).loss
