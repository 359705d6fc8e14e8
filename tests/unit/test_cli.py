"""The command: exit codes, messages, and what programs read. Nothing here starts a cluster."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pipelines.cli import app
from pipelines.run.store import ArtifactStore
from tests.unit import workspace
from tests.unit.workspace import SPEC


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RONDO_STORE", raising=False)
    return workspace.make(tmp_path)


def rondo(*arguments: str) -> Result:
    """Run the command; an exception that it does not handle fails the test."""
    result = CliRunner().invoke(app, list(arguments))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def record(name: str, status: str = "done", **values: Any) -> dict[str, Any]:
    step = {"key": "base", "stage": "materialise", "fingerprint": "ab" * 32, "cached": False, "seconds": 1.0}
    known = {"run": name, "status": status, "spec": "/x/spec.yaml", "seconds": 2.0, "steps": [step], "rounds": []}
    return known | values


def store_with(folder: Path, *records: dict[str, Any]) -> ArtifactStore:
    store = ArtifactStore(str(folder / "store"))
    for each in records:
        store.write_run(each["run"], each)
    return store


def test_help_names_every_command() -> None:
    result = rondo("--help")
    assert result.exit_code == 0
    for command in ("check", "plan", "run", "runs", "show"):
        assert command in result.stdout


@pytest.mark.parametrize("arguments", [["check"], ["nope"], ["check", "a", "b"], ["run", "--nope"], ["show"]])
def test_wrong_usage_exits_with_2(folder: Path, arguments: list[str]) -> None:
    result = rondo(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage: " in result.stderr


def test_check_takes_a_sound_spec(folder: Path) -> None:
    result = rondo("check", str(workspace.spec(folder)))
    assert result.exit_code == 0
    assert "spec.yaml: good; rounds: 1" in result.stdout
    assert result.stderr == ""


def test_check_tells_of_rows_that_cannot_be_used(folder: Path) -> None:
    with (folder / "train.jsonl").open("a") as file:
        file.write("not json\n")
    result = rondo("check", str(workspace.spec(folder)))
    assert result.exit_code == 0
    assert "note: 1 unusable rows of train.jsonl" in result.stdout


@pytest.mark.parametrize("command", ["check", "plan", "run"])
def test_a_bad_spec_exits_with_2_and_names_every_mistake(folder: Path, command: str) -> None:
    result = rondo(command, str(workspace.spec(folder, SPEC + "rouns: 2\ntrain: {beta: -1}\n")))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "2 problems found, nothing was started" in result.stderr
    assert "spec.yaml:5 rouns: unknown key; did you mean 'rounds'?" in result.stderr
    assert "spec.yaml:6 train.beta: " in result.stderr
    assert not (folder / ".rondo").exists()


def test_one_problem_is_told_in_the_singular(folder: Path) -> None:
    result = rondo("check", str(workspace.spec(folder, SPEC + "rouns: 2\n")))
    assert "1 problem found" in result.stderr


def test_a_spec_that_is_not_there_exits_with_2(folder: Path) -> None:
    result = rondo("run", "quikstart")
    assert result.exit_code == 2
    assert 'did you mean the recipe "quickstart"?' in result.stderr


def test_overrides_reach_the_spec(folder: Path) -> None:
    spec = str(workspace.spec(folder))
    assert "good; rounds: 3" in rondo("check", spec, "--set", "rounds=3").stdout
    refused = rondo("check", spec, "--set", "train.beta=-1", "--set", "rounds")
    assert refused.exit_code == 2
    assert "2 problems" in refused.stderr


def test_resources_that_this_machine_does_not_have_are_refused(folder: Path) -> None:
    result = rondo("check", str(workspace.spec(folder, SPEC + "resources:\n  rollout: {cpus: 100000}\n")))
    assert result.exit_code == 2
    assert "resources.rollout" in result.stderr
    assert "100000" in result.stderr


def test_plan_tells_programs_of_each_step(folder: Path) -> None:
    spec = str(workspace.spec(folder))
    result = rondo("plan", spec, "--store", str(folder / "store"), "--json")
    assert result.exit_code == 0
    rows = json.loads(result.stdout)
    assert [row["key"] for row in rows][:2] == ["base", "prompts"]
    for row in rows:
        assert set(row) == {"key", "stage", "fingerprint", "committed", "why", "needs"}
        assert len(row["fingerprint"]) == 64
        assert not row["committed"]
        assert row["why"] == "new"
    again = json.loads(rondo("plan", spec, "--store", str(folder / "store"), "--json").stdout)
    assert again == rows


def test_plan_shows_what_is_committed_and_why_the_rest_has_to_run(folder: Path) -> None:
    spec, place = str(workspace.spec(folder)), str(folder / "store")
    rows = json.loads(rondo("plan", spec, "--store", place, "--json").stdout)
    store = ArtifactStore(place)
    train = next(row for row in rows if row["stage"] == "train")
    payload = {"stage": "train", "version": 1, "config": {"beta": 0.3}, "inputs": {}}
    manifest = {"key": "base", "payload": {"stage": "materialise"}, "summary": {}, "seconds": 1.0}
    store.commit(store.output(rows[0]["fingerprint"], {}), manifest)
    store.commit(store.output("other", {}), manifest | {"payload": payload})
    lines = rondo("plan", spec, "--store", place).stdout.splitlines()
    assert lines[0].split() == ["base", rows[0]["fingerprint"][:12], "committed"]
    (line,) = (line for line in lines if train["fingerprint"][:12] in line)
    assert "to run (" in line
    assert "beta 0.3 -> 0.1" in line


def test_a_place_that_can_be_no_store_exits_with_2(folder: Path) -> None:
    for place in (str(workspace.spec(folder)), "nope://bucket"):
        result = rondo("plan", str(workspace.spec(folder)), "--store", place)
        assert result.exit_code == 2
        assert "store " in result.stderr


def test_runs_of_a_fresh_store(folder: Path) -> None:
    assert "no runs in " in rondo("runs", "--store", str(folder / "store")).stdout
    assert json.loads(rondo("runs", "--store", str(folder / "store"), "--json").stdout) == []


def test_runs_are_listed_the_newest_first(folder: Path) -> None:
    store_with(folder, record("20250101-a"), record("20250102-b", "failed", error="train: no"))
    lines = rondo("runs", "--store", str(folder / "store")).stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["20250102-b", "failed"], ["20250101-a", "done"]]
    listed = json.loads(rondo("runs", "--store", str(folder / "store"), "--json").stdout)
    assert [each["run"] for each in listed] == ["20250102-b", "20250101-a"]


def test_the_store_can_be_named_by_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_with(folder, record("20250101-a"))
    monkeypatch.setenv("RONDO_STORE", str(folder / "store"))
    assert rondo("runs").stdout.startswith("20250101-a")


def test_a_run_whose_process_is_gone_was_killed(folder: Path) -> None:
    here = {"host": socket.gethostname()}
    names = ("20250101-gone", "20250102-lives")
    store = store_with(folder, *(record(name, "running", **here) for name in names))
    with store.lock("run-20250102-lives"):
        listed = json.loads(rondo("runs", "--store", str(folder / "store"), "--json").stdout)
        assert {each["run"]: each["status"] for each in listed} == {
            "20250101-gone": "killed", "20250102-lives": "running",
        }  # fmt: skip
        assert "killed" in rondo("show", "gone", "--store", str(folder / "store")).stdout


def test_show_tells_of_one_run(folder: Path) -> None:
    store_with(folder, record("20250101-a", "failed", error="train: no room", policy=None, log="/x/a.log"))
    result = rondo("show", "20250101-a", "--store", str(folder / "store"))
    assert result.exit_code == 0
    for part in ("20250101-a", "failed", "/x/spec.yaml", "base", "abababababab", "train: no room", "/x/a.log"):
        assert part in result.stdout
    assert "policy" not in result.stdout
    as_json = rondo("show", "a", "--store", str(folder / "store"), "--json").stdout
    assert json.loads(as_json)["error"] == "train: no room"


def test_show_refuses_unknown_and_ambiguous_names(folder: Path) -> None:
    store_with(folder, record("20250101-tiny"), record("20250102-tiny"), record("20250102-tiny-2"))
    unknown = rondo("show", "huge", "--store", str(folder / "store"))
    assert unknown.exit_code == 2
    assert "no such run" in unknown.stderr
    ambiguous = rondo("show", "20250102", "--store", str(folder / "store"))
    assert ambiguous.exit_code == 2
    assert "2 runs match: 20250102-tiny, 20250102-tiny-2" in ambiguous.stderr
    whole = rondo("show", "20250102-tiny", "--store", str(folder / "store"))
    assert whole.exit_code == 0


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", ""])
def test_show_reads_nothing_but_runs(folder: Path, name: str) -> None:
    (folder / "store").mkdir()
    (folder / "store" / "secret.json").write_text(json.dumps(record("secret")))
    assert rondo("show", name, "--store", str(folder / "store")).exit_code == 2


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", r"no Ray cluster can be joined at 127.0.0.1:1: .*refused. Start one with `ray start --head`"),
        ("abc", "expected HOST:PORT"),
        ("http://127.0.0.1:8265", "expected HOST:PORT .* does not go through the dashboard"),
        ("127.0.0.1:99999", "no Ray cluster can be joined"),
    ],
)
def test_an_address_at_which_no_cluster_is_exits_with_2(folder: Path, address: str, said: str) -> None:
    result = rondo("run", str(workspace.spec(folder)), "--store", str(folder / "store"), "--address", address)
    assert result.exit_code == 2
    assert re.search(said, result.stderr)
    assert not (folder / "store").exists()
