"""What is wrong with a sweep is said before it starts, with the key path."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit import workspace

HEAD = """\
name: tiny
policy: {model: model}
preferences: [pairs.jsonl]
data: {heldout: 0.3}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return workspace.make(tmp_path)


def sweep(text: str, head: str = HEAD) -> str:
    return f"{head}sweep: {{{text}}}\n"


@pytest.mark.parametrize(
    ("space", "where", "part"),
    [
        ("betta: [1]", "betta", "did you mean 'beta'?"),
        ("train.beta: [1]", "train.beta", "no such setting of train"),
        ("lora.rnk: [8]", "lora.rnk", "did you mean 'lora.rank'?"),
        ("seed: [1, 2]", "seed", "sweep.seeds trains each"),
        ("beta: []", "beta.choice", "is empty"),
        ("beta: [1, 1]", "beta.choice", "has a value twice"),
        ("beta: 1", "beta", "expected a list of values or one distribution"),
        ("beta: {unifrom: [1, 2]}", "beta", "did you mean 'uniform'?"),
        ("beta: {uniform: [2, 1]}", "beta.uniform", "is empty: expected [low, high] with low < high, got [2, 1]"),
        ("beta: {uniform: [1, 1]}", "beta.uniform", "is empty"),
        ("beta: {loguniform: [0, 1]}", "beta.loguniform", "has no logarithm at 0: begin above zero, or use uniform"),
        ("batch_size: {lograndint: [0, 9]}", "batch_size.lograndint", "or use randint"),
        ("batch_size: {uniform: [8, 32]}", "batch_size.uniform", "takes whole numbers; use randint"),
        ("beta: {uniform: [-1, 1]}", "beta.uniform", "-1.0: input should be greater than 0"),
        ("loss: [sigmoid, simpoo]", "loss.choice", "did you mean 'simpo'?"),
        ("loss.gamma: {uniform: [0, 1]}", "loss.gamma.uniform", "extra inputs are not permitted"),
    ],
)
def test_a_dimension_that_does_not_fit(folder: Path, space: str, where: str, part: str) -> None:
    problem = workspace.only(folder, sweep(f"space: {{{space}}}"))
    assert problem.where == f"spec.yaml:5 sweep.space.{where}"
    assert part in problem.message


def test_all_mistakes_are_said_at_once(folder: Path) -> None:
    text = sweep(
        "space: {betta: [1], beta: {loguniform: [0, 1]}, lora.rank: {randint: [8, 8]}, seed: [1]}, scheduler: ahsa, "
        "search: bayes, objective: accuracy, trials: 0"
    )
    found = [problem.where.removeprefix("spec.yaml:5 sweep.") for problem in workspace.refused(folder, text)]
    assert found == [
        "space.betta", "space.beta.loguniform", "space.lora.rank.randint", "space.seed", "search", "scheduler",
        "trials", "objective",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "where", "part"),
    [
        ("space: {}", "space", "at least 1"),
        ("space: {beta: {uniform: [1, 2]}}, search: grid", "space.beta.uniform", "a grid needs a list of values"),
        ("space: {beta: [1, 2]}, search: grid, trials: 2", "trials", "tries all 2 combinations"),
        ("space: {beta: {uniform: [1, 2]}}, parallel: 9, trials: 4", "parallel", "9 is more than the 4 trials"),
        ("space: {beta: [1, 2]}, trials: 4", "trials", "4 is more than the 2 combinations there are; use search: grid"),
        ("space: {beta: [1, 2]}, every: 1", "every", "1 rounds after the first there is none (rounds: 1)"),
        (
            "space: {loss: [sigmoid, simpo]}, objective: kl",
            "objective",
            "kl is the distance to the reference, and simpo",
        ),
        ("space: {beta: [1, 2]}, objective: win_rate", "objective", "win_rate needs prompts.heldout"),
        ("space: {beta: [1, 2]}, objective: [kl, kl]", "objective", "names the same twice"),
        ("space: {beta: [1, 2]}, scheduler: pbt", "scheduler", "no configuration stands for its result"),
        ("space: {beta: [1, 2]}, scheduler: {use: asha, reduction: 1}", "scheduler.reduction", "greater than or equal"),
    ],
)
def test_a_search_that_cannot_be_made(folder: Path, text: str, where: str, part: str) -> None:
    problem = workspace.only(folder, sweep(text))
    assert problem.where == f"spec.yaml:5 sweep.{where}"
    assert part in problem.message


def test_what_nothing_is_held_out_for(folder: Path) -> None:
    text = sweep("space: {beta: [1, 2]}, objective: [reward_accuracy, kl]", HEAD.replace("0.3", "0"))
    found = {(problem.where.partition("sweep.")[2], problem.message) for problem in workspace.refused(folder, text)}
    named = {where for where, _ in found}
    assert named == {"objective", "scheduler", "search"}
    assert all("held-out pairs: preferences, and data.heldout above 0" in message for _, message in found)
    alone = sweep("space: {beta: [1, 2]}, objective: win_rate, scheduler: none, search: random")
    head = "name: tiny\npolicy: {model: model}\nprompts: {train: train.jsonl, heldout: heldout.jsonl}\n"
    workspace.loaded(folder, alone.replace(HEAD, head + "judge: {use: sentiment}\n"))


def test_more_workers_than_pairs_in_a_batch(folder: Path) -> None:
    text = sweep("space: {batch_size: [8, 2]}") + "resources: {train: {workers: 4}}\n"
    assert "2: leaves some of 4 workers" in workspace.only(folder, text).message


@pytest.mark.parametrize(
    ("train", "space", "part"),
    [
        ("length_normalise: true", "loss: [sigmoid, simpo]", "'simpo': train.length_normalise cannot be combined with"),
        ("peft: {peft_type: IA3}", "peft.rr: [1]", "1: not a setting of IA3"),
        ("beta: 0.1", "loss: [simpo, sigmoid], loss.gamma: [0.1]", "loss 'sigmoid', loss.gamma 0.1: extra inputs"),
        ("loss: [sigmoid, ipo]", "loss.label_smoothing: [0.1]", "name the loss with use"),
        ("peft: {peft_type: IA3}", "lora.rank: [8]", "give one of the two"),
    ],
)
def test_values_that_do_not_go_with_the_other_settings(folder: Path, train: str, space: str, part: str) -> None:
    problem = workspace.only(folder, f"{sweep(f'space: {{{space}}}')}train: {{{train}}}\n")
    assert problem.where.startswith("spec.yaml:5 sweep.space.")
    assert part in problem.message


def test_objectives_whose_scale_is_varied_are_noted(folder: Path) -> None:
    text = sweep("space: {beta: [0.1, 0.2]}, objective: [reward_accuracy, heldout_loss]")
    notes = [note for note in workspace.loaded(folder, text).notes if note.startswith("sweep.objective")]
    assert len(notes) == 1
    assert "heldout_loss cannot be compared between values of beta" in notes[0]
    other = sweep("space: {learning_rate: [1.0e-4, 1.0e-5]}, objective: heldout_loss")
    assert not any(note.startswith("sweep.objective") for note in workspace.loaded(folder, other).notes)


@pytest.mark.parametrize(
    ("train", "part"),
    [
        ("{3: {beta: 0.2}}", "there is no round 3"),
        ("{2: {betta: 0.2}}", "betta"),
        ("{2: {beta: -1}}", "greater than 0"),
        ("{0: {beta: 1}}", "greater than 0"),
    ],
)
def test_settings_that_change_by_round_are_checked(folder: Path, train: str, part: str) -> None:
    problem = workspace.only(folder, f"{HEAD}iterate: {{train: {train}}}\nrounds: 2\nprompts: {{train: train.jsonl}}\n"
                                     "judge: {use: sentiment}\n")  # fmt: skip
    assert problem.where.startswith("spec.yaml:5 iterate.train.")
    assert part in problem.where + problem.message
