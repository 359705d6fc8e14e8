"""Keys, types and overrides: what is wrong with a spec is said with its file, line and key path."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.spec import load
from pipelines.spec.models import SourceSpec
from pipelines.spec.problems import SpecError
from tests.unit import workspace
from tests.unit.workspace import OFFLINE, SPEC

RULES = SPEC.replace("{use: sentiment}", "\n  use: rules")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return workspace.make(tmp_path)


def test_a_sound_spec_is_taken_with_its_defaults(folder: Path) -> None:
    found = workspace.loaded(folder)
    assert found.spec.name == "tiny"
    assert found.spec.rounds == 1
    assert found.spec.train.beta == 0.1
    assert found.spec.prompts.train == "train.jsonl"
    assert found.notes == ()


def test_an_offline_spec_is_taken(folder: Path) -> None:
    assert workspace.loaded(folder, OFFLINE).spec.preferences == (SourceSpec(path="pairs.jsonl"),)


@pytest.mark.parametrize(
    ("text", "where", "nearest"),
    [
        (SPEC + "rouns: 2\n", "spec.yaml:5 rouns", "'rounds'"),
        (SPEC + "train:\n  betta: 0.2\n", "spec.yaml:6 train.betta", "'beta'"),
        (SPEC + "train:\n  lora:\n    rnk: 8\n", "spec.yaml:7 train.lora.rnk", "'rank'"),
        (SPEC + "evaluate:\n  promote_if:\n    winrate: 1\n", "spec.yaml:7 evaluate.promote_if.winrate", "'win_rate'"),
        (SPEC + "resources:\n  train:\n    worker: 2\n", "spec.yaml:7 resources.train.worker", "'workers'"),
        (RULES + "  max_word: 3\n", "spec.yaml:6 judge.max_word", "'max_words'"),
    ],
)
def test_a_misspelt_key_is_named_with_the_nearest_valid_one(folder: Path, text: str, where: str, nearest: str) -> None:
    problem = workspace.only(folder, text)
    assert problem.where == where
    assert "unknown key" in problem.message
    assert f"did you mean {nearest}?" in problem.message


def test_a_key_like_no_other_lists_the_valid_ones(folder: Path) -> None:
    problem = workspace.only(folder, SPEC + "pair:\n  qqqq: 1\n")
    assert problem.where == "spec.yaml:6 pair.qqqq"
    assert "strategy" in problem.message
    assert "min_margin" in problem.message


def test_a_key_of_another_judge_is_refused(folder: Path) -> None:
    """``max_words`` is valid for the rules judge, and for that one alone."""
    problem = workspace.only(folder, SPEC.replace("{use: sentiment}", "{use: sentiment, max_words: 3}"))
    assert problem.where == "spec.yaml:4 judge.max_words"
    assert problem.message == "unknown key; valid: use"


@pytest.mark.parametrize(
    ("text", "where", "got"),
    [
        (SPEC + "rounds: two\n", "spec.yaml:5 rounds", "'two'"),
        (SPEC + "rounds: 0\n", "spec.yaml:5 rounds", "0"),
        (SPEC + "rounds: 1.5\n", "spec.yaml:5 rounds", "1.5"),
        (SPEC + "rounds:\n", "spec.yaml:5 rounds", "None"),
        (SPEC + "train: 3\n", "spec.yaml:5 train", "3"),
        (SPEC + "train:\n  lora: 3\n", "spec.yaml:6 train.lora", "3"),
        (SPEC + "train:\n  beta: -1\n", "spec.yaml:6 train.beta", "-1"),
        (SPEC + "train:\n  beta: 0\n", "spec.yaml:6 train.beta", "0"),
        (SPEC + "train:\n  beta: .nan\n", "spec.yaml:6 train.beta", "nan"),
        (SPEC + "train:\n  beta: .inf\n", "spec.yaml:6 train.beta", "inf"),
        (SPEC + "train:\n  warmup: 1.5\n", "spec.yaml:6 train.warmup", "1.5"),
        (SPEC + "rollout:\n  top_p: 0\n", "spec.yaml:6 rollout.top_p", "0"),
        (SPEC + "preferences: pairs.jsonl\n", "spec.yaml:5 preferences", "'pairs.jsonl'"),
        (SPEC + "iterate:\n  initial: last\n", "spec.yaml:6 iterate.initial", "'last'"),
    ],
)
def test_a_wrong_value_is_refused_where_it_stands(folder: Path, text: str, where: str, got: str) -> None:
    problem = workspace.only(folder, text)
    assert problem.where == where
    assert problem.message.endswith(f"got {got}")


@pytest.mark.parametrize("judge", ["{use: sentimnt}", "sentiment", "{}", "{use: 3}"])
def test_an_unknown_judge_names_the_valid_ones(folder: Path, judge: str) -> None:
    problem = workspace.only(folder, SPEC.replace("{use: sentiment}", judge))
    assert problem.where == "spec.yaml:4 judge.use"
    for valid in ("sentiment", "rules", "module:Class"):
        assert valid in problem.message


def test_an_unknown_loss_names_the_valid_ones(folder: Path) -> None:
    problem = workspace.only(folder, SPEC + "train:\n  loss: sigmod\n")
    assert problem.where == "spec.yaml:6 train.loss"
    assert "'sigmoid'" in problem.message
    assert "'sigmod'" in problem.message


def test_a_bad_regular_expression_is_refused(folder: Path) -> None:
    problem = workspace.only(folder, RULES + '  pattern: "("\n')
    assert problem.where == "spec.yaml:6 judge.pattern"
    assert "not a regular expression" in problem.message


def test_required_keys_that_are_missing_are_named(folder: Path) -> None:
    found = {p.where: p.message for p in workspace.refused(folder, "rounds: 1\npreferences: [pairs.jsonl]\n")}
    assert found == {"spec.yaml name": "required, but missing", "spec.yaml policy": "required, but missing"}


@pytest.mark.parametrize(
    "name", ["a; rm -rf /", "../escape", "/etc/passwd", "Upper", "a b", "-a", "a-", "", "a" * 64, "a\\n", "ä", "$(id)"]
)
def test_a_name_that_is_no_safe_file_name_is_refused(folder: Path, name: str) -> None:
    problem = workspace.only(folder, SPEC.replace("name: tiny", f'name: "{name}"'))
    assert problem.where == "spec.yaml:1 name"
    assert "lower-case letters, digits and hyphens" in problem.message


def test_every_mistake_is_reported_at_once(folder: Path) -> None:
    text = (
        'name: "A b"\npolicy: {model: model}\nprompts: {train: nope.jsonl}\njudge: {use: nice}\n'
        "rounds: 0\ntrain: {beta: -1, epocs: 2}\n"
    )
    found = {problem.where for problem in workspace.refused(folder, text)}
    assert found == {
        "spec.yaml:1 name", "spec.yaml:3 prompts.train", "spec.yaml:4 judge.use", "spec.yaml:5 rounds",
        "spec.yaml:6 train.beta", "spec.yaml:6 train.epocs",
    }  # fmt: skip


def test_the_error_says_one_line_a_problem(folder: Path) -> None:
    path = workspace.spec(folder, SPEC + "rounds: 0\ntrain: {beta: -1}\n")
    with pytest.raises(SpecError) as caught:
        load.load(str(path))
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("spec.yaml:5 rounds: ")
    assert lines[1].startswith("spec.yaml:6 train.beta: ")


def test_sound_sections_are_checked_although_others_are_not(folder: Path) -> None:
    text = SPEC + "rounds: 0\ntrain:\n  batch_size: 2\nresources:\n  train: {workers: 3}\n"
    found = {problem.where for problem in workspace.refused(folder, text)}
    assert found == {"spec.yaml:5 rounds", "spec.yaml:7 train.batch_size"}


def test_a_huge_wrong_value_is_not_quoted_in_full(folder: Path) -> None:
    problem = workspace.only(folder, SPEC + f"rounds: {'x' * 5000}\n")
    assert len(problem.message) < 1000


def test_a_number_without_dot_is_a_number(folder: Path) -> None:
    assert workspace.loaded(folder, SPEC + "train: {learning_rate: 5e-7}\n").spec.train.learning_rate == 5e-7
    assert workspace.loaded(folder, SPEC, "train.learning_rate=5e-7").spec.train.learning_rate == 5e-7


def test_text_that_only_looks_like_a_number_stays_text(folder: Path) -> None:
    judge = "{use: rules, must_contain: [e5, 1e, word-5e-7]}"
    spec = workspace.loaded(folder, SPEC.replace("{use: sentiment}", judge)).spec
    assert spec.judge is not None
    assert spec.judge.model_dump()["must_contain"] == ("e5", "1e", "word-5e-7")


def test_overrides_replace_and_add_values(folder: Path) -> None:
    spec = workspace.loaded(
        folder,
        SPEC,
        "train.beta=0.2",
        "train.lora.rank=8",
        "rounds=3",
        "judge={use: rules, max_words: 9}",
        "preferences=[pairs.jsonl]",
    ).spec
    assert spec.train.beta == 0.2
    assert spec.train.lora is not None
    assert spec.train.lora.rank == 8
    assert spec.rounds == 3
    assert spec.judge is not None
    assert spec.judge.use == "rules"
    assert spec.preferences == (SourceSpec(path="pairs.jsonl"),)


def test_the_last_override_wins_and_neighbours_stay(folder: Path) -> None:
    text = SPEC + "train: {beta: 0.3, epochs: 5}\n"
    spec = workspace.loaded(folder, text, "train.beta=0.2", "train.beta=0.4").spec
    assert spec.train.beta == 0.4
    assert spec.train.epochs == 5


@pytest.mark.parametrize(
    ("override", "where", "part"),
    [
        ("train.beta", "--set train.beta", "expected key.path=value"),
        ("=3", "--set =3", "expected key.path=value"),
        ("train.beta=[", "--set train.beta=[", "not a YAML value"),
        ("train.beta=!!python/name:os.system", "--set train.beta=!!python/name:os.system", "not a YAML value"),
        ("train.beta=", "--set train.beta", "None"),
        ("train.beta=low", "--set train.beta", "'low'"),
        ("train.betta=1", "--set train.betta", "did you mean 'beta'?"),
        ("train.loss=dpo", "--set train.loss", "'sigmoid'"),
        ("rouns=1", "--set rouns", "did you mean 'rounds'?"),
        ("prompts.train=nope.jsonl", "--set prompts.train", "nope.jsonl"),
    ],
)
def test_a_bad_override_is_a_problem_like_any_other(folder: Path, override: str, where: str, part: str) -> None:
    problem = workspace.only(folder, SPEC, override)
    assert problem.where == where
    assert part in problem.message


@pytest.mark.parametrize("value", ["2024-99-99", "[" * 2000])
def test_an_override_that_yaml_chokes_on_is_a_problem(folder: Path, value: str) -> None:
    assert "--set name=" in workspace.only(folder, SPEC, f"name={value}").where


def test_a_recipe_is_found_by_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert load.find("quickstart") == load.recipes()["quickstart"]
    assert load.find("quickstart").is_file()


def test_a_file_goes_before_a_recipe_of_the_same_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "quickstart").write_text(SPEC)
    assert load.find("quickstart") == folder / "quickstart"


@pytest.mark.parametrize(("name", "part"), [("quikstart", '"quickstart"?'), ("zzz", "recipes: "), ("", "quickstart")])
def test_what_is_neither_file_nor_recipe_is_refused(name: str, part: str) -> None:
    with pytest.raises(SpecError, match="no such file or recipe") as caught:
        load.find(name)
    assert part in str(caught.value)


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b"])
def test_a_hostile_spec_name_is_refused(name: str) -> None:
    with pytest.raises(SpecError, match="no such file or recipe"):
        load.find(name)
