"""``train.loss`` and its companions: how they may be written, what is refused, and what is one identity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.plan.steps import Step
from stages.catalog import TRAIN
from stages.core.losses.config import TRAITS, needs_reference, takes_unpaired
from stages.train.config import TrainConfig
from tests.unit import workspace
from tests.unit.workspace import OFFLINE

OWN = """\
def loss(x, beta, *, margin=1.0): ...
def penalty(x, rewards, pairs, limit): ...
def one(x): ...
number = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "spec_losses.py").write_text(OWN)
    return workspace.make(tmp_path)


def identity(**config: Any) -> str:
    return Step("train", TRAIN, TrainConfig(**config), {}).fingerprint


def train(folder: Path, text: str) -> TrainConfig:
    return workspace.loaded(folder, OFFLINE + f"train:\n  {text}\n").spec.train


@pytest.mark.parametrize(
    "same",
    [
        [{}, {"loss": "sigmoid"}, {"loss": {"use": "sigmoid"}}, {"loss": ["sigmoid"]},
         {"loss": [{"use": "sigmoid", "weight": 1, "label_smoothing": 0}]}, {"divergence": "reverse_kl"},
         {"divergence": {"use": "reverse_kl"}}, {"constraints": []}, {"sft_weight": 0}],
        [{"loss": "simpo"}, {"loss": {"use": "simpo", "gamma": 0.5}}, {"loss": [{"use": "simpo", "weight": 1.0}]}],
        [{"loss": ["cpo", "ipo"]}, {"loss": [{"use": "cpo", "alpha": 1}, {"use": "ipo"}]}],
        [{"divergence": "alpha"}, {"divergence": {"use": "alpha", "alpha": 0.5}}],
    ],
)  # fmt: skip
def test_ways_to_write_the_same_are_one_identity(same: list[dict[str, Any]]) -> None:
    assert len({identity(**config) for config in same}) == 1


def test_other_settings_are_other_identities() -> None:
    configs: list[dict[str, Any]] = [
        {}, *({"loss": name} for name in TRAITS if name != "sigmoid"), {"loss": {"use": "sigmoid", "weight": 2}},
        {"loss": {"use": "sigmoid", "label_smoothing": 0.1}},
        {"loss": ["sigmoid", "ipo"]}, {"loss": ["ipo", "sigmoid"]},
        {"divergence": "js"}, {"divergence": {"use": "alpha", "alpha": 0.4}}, {"divergence": "alpha"},
        {"length_normalise": True}, {"sft_weight": 1}, {"wpo": True},
    ]  # fmt: skip
    assert len({identity(**config) for config in configs}) == len(configs)


def test_the_default_loss_adds_nothing_to_what_is_hashed() -> None:
    """Trainings made before there was a choice keep their identity."""
    assert TrainConfig(loss="sigmoid").identity() == {}


def test_users_losses_and_constraints_count_by_their_source(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    constraint = {"use": "spec_losses:penalty", "options": {"limit": 2}}
    config = TrainConfig(loss=["ipo", {"use": "spec_losses:loss"}], constraints=[constraint])

    def step() -> Step:
        return Step("train", TRAIN, config, {})

    first = step()
    assert set(first.payload["plugins"]) == {"spec_losses:loss", "spec_losses:penalty"}
    (folder / "spec_losses.py").write_text(OWN + "\n")
    assert step().fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("text", "uses"),
    [
        ("loss: simpo", ["simpo"]),
        ("loss: {use: simpo, gamma: 1}", ["simpo"]),
        ("loss: [sigmoid, {use: bco, weight: 0.5}]", ["sigmoid", "bco"]),
        ("loss: spec_losses:loss", ["spec_losses:loss"]),
        ('loss: {use: "spec_losses:loss", options: {margin: 2}, weight: 3}', ["spec_losses:loss"]),
    ],
)
def test_a_loss_may_be_a_name_a_mapping_or_a_list(folder: Path, text: str, uses: list[str]) -> None:
    assert [loss.use for loss in train(folder, text).loss] == uses


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.loss=simpo", TrainConfig(loss="simpo")),
        ("train.loss={use: simpo, gamma: 1}", TrainConfig(loss={"use": "simpo", "gamma": 1})),
        ("train.loss=[ipo, cpo]", TrainConfig(loss=["ipo", "cpo"])),
        ("train.divergence=js", TrainConfig(divergence="js")),
        ("train.wpo=true", TrainConfig(wpo=True)),
        ("train.sft_weight=0.5", TrainConfig(sft_weight=0.5)),
    ],
)
def test_the_command_line_sets_them(folder: Path, override: str, expected: TrainConfig) -> None:
    assert workspace.loaded(folder, OFFLINE, override).spec.train == expected


def test_the_command_line_reaches_into_a_mapping(folder: Path) -> None:
    text = OFFLINE + "train: {loss: {use: simpo, gamma: 1}}\n"
    assert workspace.loaded(folder, text, "train.loss.gamma=2").spec.train == TrainConfig(
        loss={"use": "simpo", "gamma": 2}
    )


@pytest.mark.parametrize(
    ("text", "where", "part"),
    [
        ("loss: sigmod", "train.loss", "unknown loss 'sigmod'; did you mean 'sigmoid'?"),
        ("loss: dpo", "train.loss", "did you mean 'sigmoid'?"),
        ("loss: zzz", "train.loss", "unknown loss 'zzz'; valid: sigmoid, robust"),
        ("loss: {use: simp}", "train.loss.use", "did you mean 'simpo'?"),
        ("loss: [ipo, symposium]", "train.loss.1", "unknown loss 'symposium'"),
        ("loss: [ipo, {use: kot}]", "train.loss.1.use", "did you mean 'kto'?"),
        ("loss: {gamma: 3}", "train.loss.use", "name the loss with use; valid: sigmoid"),
        ("loss: 3", "train.loss", "unknown loss 3"),
        ("loss:", "train.loss", "unknown loss None"),
        ("loss: []", "train.loss", "at least one loss"),
        ('loss: "a b:c"', "train.loss", "got 'a b:c'"),
        ("loss: {use: sigmoid, gama: 1}", "train.loss.gama", "unknown key; valid: weight, use, label_smoothing"),
        ("loss: {use: simpo, gama: 1}", "train.loss.gama", "did you mean 'gamma'?"),
        ("loss: {use: kto, label_smoothing: 0.1}", "train.loss.label_smoothing", "unknown key"),
        ("loss: [ipo, {use: bco, gamma: 1}]", "train.loss.1.gamma", "unknown key; valid: weight, use"),
        ("loss: {use: sigmoid, label_smoothing: 0.5}", "train.loss.label_smoothing", "less than 0.5, got 0.5"),
        ("loss: {use: sigmoid, label_smoothing: -0.1}", "train.loss.label_smoothing", "got -0.1"),
        ("loss: {use: exo, label_smoothing: 0}", "train.loss.label_smoothing", "greater than 0, got 0"),
        ("loss: {use: discopop, temperature: 2}", "train.loss.temperature", "got 2"),
        ("loss: [ipo, {use: cpo, weight: 0}]", "train.loss.1.weight", "greater than 0, got 0"),
        ('loss: {use: "spec_losses:loss", margin: 2}', "train.loss.margin", "unknown key"),
        ("divergence: kl", "train.divergence", "unknown divergence 'kl'"),
        ("divergence: reversekl", "train.divergence", "did you mean 'reverse_kl'?"),
        ("divergence: {use: js, alpha: 0.5}", "train.divergence.alpha", "unknown key; valid: use"),
        ("divergence: {use: alpha, alpha: 1}", "train.divergence.alpha", "less than 1, got 1"),
        ("sft_weight: -1", "train.sft_weight", "got -1"),
        ("constraints: [{use: penalty}]", "train.constraints.0.use", "got 'penalty'"),
        ("constraints: [{weight: 1}]", "train.constraints.0.use", "required, but missing"),
        ('constraints: [{use: "spec_losses:penalty", wieght: 1}]', "train.constraints.0.wieght", "'weight'"),
    ],
)
def test_what_cannot_be_is_refused_where_it_stands(folder: Path, text: str, where: str, part: str) -> None:
    problem = workspace.only(folder, OFFLINE + f"train:\n  {text}\n")
    assert problem.where == f"spec.yaml:5 {where}"
    assert part in problem.message


@pytest.mark.parametrize(
    ("text", "where", "part"),
    [
        ("{loss: simpo, length_normalise: true}", "train.length_normalise", "simpo, which divides by the response's"),
        ("{loss: ipo, length_normalise: true}", "train.length_normalise", "ipo, which divides by the response's"),
        ("{loss: cpo, length_normalise: true}", "train.length_normalise", "cpo, which has no reference"),
        ("{loss: [sigmoid, orpo], divergence: js}", "train.divergence", "orpo, which has no reference"),
        ("{loss: sppo, divergence: js}", "train.divergence", "sppo, which is not a function of the two rewards"),
        ("{loss: aot, divergence: alpha}", "train.divergence", "aot, which is not a function of the two rewards"),
        ("{loss: kto, length_normalise: true}", "train.length_normalise", "kto, which is not a function"),
        ("{loss: 'spec_losses:loss', divergence: js}", "train.divergence", "which is your own"),
    ],
)
def test_settings_that_cannot_work_together_are_refused(folder: Path, text: str, where: str, part: str) -> None:
    problem = workspace.only(folder, OFFLINE + f"train: {text}\n")
    assert problem.where == f"spec.yaml:4 {where}"
    assert part in problem.message


@pytest.mark.parametrize("name", [name for name in TRAITS if TRAITS[name].rewards])
def test_losses_of_rewards_take_length_normalisation_and_divergences(folder: Path, name: str) -> None:
    assert train(folder, f"loss: {name}\n  length_normalise: true\n  divergence: forward_kl").length_normalise


@pytest.mark.parametrize("name", TRAITS)
def test_every_loss_takes_wpo_and_a_likelihood_term(folder: Path, name: str) -> None:
    assert train(folder, f"loss: {name}\n  wpo: true\n  sft_weight: 1").wpo


@pytest.mark.parametrize(
    ("text", "where", "part"),
    [
        ('loss: "spec_losses:nope"', "train.loss.use", "spec_losses:nope cannot be imported: ImportError"),
        ('loss: "spec_nowhere:f"', "train.loss.use", "spec_nowhere:f cannot be imported"),
        ('loss: [ipo, "spec_losses:number"]', "train.loss.1.use", "spec_losses:number is not a class or function"),
        ('loss: "spec_losses:one"', "train.loss.use", "cannot be called with (x, beta, **options)"),
        ('loss: {use: "spec_losses:loss", options: {margn: 2}}', "train.loss.options", "does not take these options"),
        ('loss: {use: "spec_losses:loss", options: {beta: 2}}', "train.loss.options", "does not take these options"),
        ('constraints: [{use: "spec_losses:loss"}]', "train.constraints.0.use", "with (x, rewards, pairs, **options)"),
        ('constraints: [{use: "spec_losses:penalty"}]', "train.constraints.0.options", "missing a required argument"),
    ],
)
def test_users_functions_are_tried_before_anything_starts(folder: Path, text: str, where: str, part: str) -> None:
    problem = workspace.only(folder, OFFLINE + f"train:\n  {text}\n")
    assert problem.where == f"spec.yaml:5 {where}"
    assert part in problem.message


def test_a_sound_constraint_is_taken(folder: Path) -> None:
    (constraint,) = train(folder, 'constraints: [{use: "spec_losses:penalty", options: {limit: 3}}]').constraints
    assert constraint.options == {"limit": 3}
    assert constraint.weight == 1


def test_mistakes_in_the_judge_and_the_loss_are_reported_together(folder: Path) -> None:
    text = workspace.SPEC.replace("sentiment", '"spec_losses:number"') + 'train: {loss: "spec_losses:one"}\n'
    assert {problem.where for problem in workspace.refused(folder, text)} == {
        "spec.yaml:4 judge.use", "spec.yaml:5 train.loss.use"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("config", "reference", "unpaired"),
    [
        ({}, True, False),
        ({"loss": "simpo"}, False, False),
        ({"loss": ["simpo", "ipo"]}, True, False),
        ({"loss": "kto"}, True, True),
        ({"loss": ["kto", "bco"]}, True, True),
        ({"loss": ["kto", "sigmoid"]}, True, False),
        ({"loss": "mine:loss"}, True, False),
        ({"loss": "cpo", "constraints": [{"use": "mine:penalty"}]}, True, False),
    ],
)
def test_the_planner_can_ask_what_a_training_needs(config: dict[str, Any], reference: bool, unpaired: bool) -> None:
    train = TrainConfig(**config)
    assert needs_reference(train) == reference
    assert takes_unpaired(train) == unpaired
