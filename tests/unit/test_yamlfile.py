"""YAML that is broken, ambiguous or hostile ends in a message, never in a traceback."""

from __future__ import annotations

import string
from pathlib import Path

import pytest

from pipelines.spec import yamlfile
from pipelines.spec.problems import SpecError
from tests.unit import workspace
from tests.unit.workspace import SPEC


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return workspace.make(tmp_path)


@pytest.mark.parametrize(
    ("text", "found"),
    [("- a\n- b\n", "a list"), ("words\n", "a single value"), ("", "nothing"), ("# only a comment\n", "nothing")],
)
def test_a_spec_that_is_no_mapping_is_refused(folder: Path, text: str, found: str) -> None:
    problem = workspace.only(folder, text)
    assert problem.where == "spec.yaml"
    assert "expected a mapping" in problem.message
    assert problem.message.endswith(f"found {found}")


@pytest.mark.parametrize(
    ("text", "where", "first"),
    [
        (SPEC + "rounds: 1\nrounds: 2\n", "spec.yaml:6 rounds", "line 5"),
        (SPEC + "train:\n  beta: 0.1\n  epochs: 1\n  beta: 0.2\n", "spec.yaml:8 train.beta", "line 6"),
        (SPEC + "train: {beta: 0.1, beta: 0.1}\n", "spec.yaml:5 train.beta", "line 5"),
    ],
)
def test_duplicate_keys_are_refused(folder: Path, text: str, where: str, first: str) -> None:
    problem = workspace.only(folder, text)
    assert problem.where == where
    assert "duplicate key" in problem.message
    assert first in problem.message


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (SPEC + "train: {beta: 0.1\n", "spec.yaml:6"),
        (SPEC + "train:\n\tbeta: 1\n", "spec.yaml:6"),
        (SPEC + "train: [1\nrounds: 2\n", "spec.yaml:6"),
        (SPEC + "---\nname: two\n", "spec.yaml:5"),
        (SPEC + "train: *nowhere\n", "spec.yaml:5"),
    ],
)
def test_a_syntax_error_is_reported_with_its_line(folder: Path, text: str, where: str) -> None:
    problem = workspace.only(folder, text)
    assert problem.where == where
    assert "not valid YAML" in problem.message


@pytest.mark.parametrize("text", [SPEC + 'x: "\0"\n', SPEC + f"train: {'[' * 3000}{']' * 3000}\n"])
def test_control_characters_and_endless_nesting_are_refused(folder: Path, text: str) -> None:
    assert "not valid YAML" in workspace.only(folder, text).message


def test_bytes_that_are_not_utf8_are_refused(folder: Path) -> None:
    problem = workspace.only(folder, SPEC.encode() + b"# caf\xe9\n")
    assert problem.where == "spec.yaml"
    assert f"not UTF-8 text (byte {len(SPEC) + 5})" in problem.message


def test_a_byte_order_mark_is_no_mistake(folder: Path) -> None:
    assert workspace.loaded(folder, b"\xef\xbb\xbf" + SPEC.encode()).spec.name == "tiny"


def test_windows_line_ends_are_no_mistake(folder: Path) -> None:
    problem = workspace.only(folder, (SPEC + "rounds: 0\n").replace("\n", "\r\n"))
    assert problem.where == "spec.yaml:5 rounds"


def test_aliases_that_multiply_without_end_are_refused(folder: Path) -> None:
    """Nine lines that stand for a thousand million values."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    for name, before in zip(string.ascii_lowercase[1:9], string.ascii_lowercase, strict=False):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]")
    problem = workspace.only(folder, SPEC + "\n".join(lines) + "\n")
    assert "a spec is not a data file" in problem.message


@pytest.mark.parametrize("text", [SPEC + "train: &a {x: *a}\n", SPEC + "preferences: &a [*a]\n"])
def test_an_alias_that_contains_itself_is_refused(folder: Path, text: str) -> None:
    assert all(problem.where.startswith("spec.yaml") for problem in workspace.refused(folder, text))


def test_an_alias_may_be_used_twice(folder: Path) -> None:
    spec = workspace.loaded(folder, SPEC + "resources: {reference: &r {cpus: 2}, rollout: *r}\n").spec
    assert spec.resources.reference.cpus == spec.resources.rollout.cpus == 2


@pytest.mark.parametrize(
    "value", ["!!python/name:os.system", '!!python/object/apply:os.system ["true"]', "!!python/object:os.PathLike {}"]
)
def test_yaml_cannot_name_python_objects(folder: Path, value: str) -> None:
    found = workspace.refused(folder, SPEC + f"train: {value}\n")
    assert {problem.where for problem in found} == {"spec.yaml:5 train"}


@pytest.mark.parametrize("text", [SPEC + "? [a]\n: 1\n", SPEC + "1: 1\n", SPEC + "? {a: b}\n: 1\n", SPEC + "'': 1\n"])
def test_keys_that_are_no_words_are_refused(folder: Path, text: str) -> None:
    problem = workspace.only(folder, text)
    assert problem.where.startswith("spec.yaml:5")
    assert "unknown key" in problem.message


def test_an_impossible_date_is_refused(folder: Path) -> None:
    found = workspace.refused(folder, SPEC.replace("name: tiny", "name: 2024-99-99"))
    assert {problem.where for problem in found} == {"spec.yaml:1 name"}


def test_a_file_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    """A folder stands for any file that the system refuses to read."""
    with pytest.raises(SpecError):
        yamlfile.read(tmp_path)


def test_where_gives_the_line_of_the_nearest_key(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("one: 1\ntwo:\n  three: [4,\n    5]\n")
    document = yamlfile.read(path)
    assert document.value == {"one": 1, "two": {"three": [4, 5]}}
    assert document.where(("two", "three", 1)) == "a.yaml:4 two.three.1"
    assert document.where(("two", "gone")) == "a.yaml:2 two.gone"
    assert document.where(("gone",)) == "a.yaml gone"
