"""A run from start to record, with small stages and no cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from clusters import local, running
from pipelines.plan.rounds import Plan, Round
from pipelines.plan.steps import Step
from pipelines.run import summary
from pipelines.run.execute import execute
from pipelines.run.runner import Committed
from pipelines.run.store import ArtifactStore
from pipelines.spec.load import Loaded
from stages.io.artifact import Artifact
from stages.io.store import StoreError
from tests.unit import workspace
from tests.unit.steps import FAIL, CountConfig, counted

CHATTER = """
import os, sys
from clusters import local, running
from pipelines.spec import load
from pipelines.run import summary
from pipelines.run.store import ArtifactStore
from pipelines.run.execute import execute
from tests.unit.test_execute import broken

def start(cluster):
    print("chatter of Python", file=sys.stderr)
    os.write(1, b"chatter of C\\n")
    os.system("echo chatter of a child")

local.start, local.stop, running.require = start, lambda: None, lambda *given: None
sys.exit(execute(load.load(sys.argv[1]), broken(), ArtifactStore(sys.argv[2]), as_json=False, verbose=False)[1])
"""


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loaded:
    monkeypatch.setattr(local, "start", lambda cluster: None)
    monkeypatch.setattr(local, "stop", lambda: None)
    monkeypatch.setattr(running, "require", lambda *given: None)
    return workspace.loaded(workspace.make(tmp_path))


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "store"))


def code_of(loaded: Loaded, plan: Plan, store: ArtifactStore, as_json: bool, verbose: bool) -> int:
    """Run as the command does: the record is printed where JSON is asked for."""
    document, code = execute(loaded, plan, store, as_json, verbose)
    if as_json:
        print(json.dumps(document))
    return code


def sound(add: int = 2) -> Plan:
    prepare = counted("round-1/prepare", CountConfig(add=1))
    return Plan((Round(1, prepare, counted("round-1/train", CountConfig(add=add), left=prepare), None, None, None),))


def broken() -> Plan:
    prepare = counted("round-1/prepare", CountConfig(add=1))
    return Plan((Round(1, prepare, Step("round-1/train", FAIL, CountConfig(), {"left": prepare}), None, None, None),))


def opened(store: ArtifactStore, step: Step) -> Artifact:
    manifest = Committed(store)(step)
    assert manifest is not None
    return store.open(manifest)


def test_a_run_that_is_done(loaded: Loaded, store: ArtifactStore, capfd: pytest.CaptureFixture[str]) -> None:
    assert code_of(loaded, sound(), store, as_json=True, verbose=False) == 0
    out = capfd.readouterr().out
    said = json.loads(out)
    assert out.count("\n") == 1
    assert said["status"] == "done"
    assert [(step["key"], step["cached"]) for step in said["steps"]] == [
        ("round-1/prepare", False), ("round-1/train", False),
    ]  # fmt: skip
    artifact = opened(store, sound().policy)
    assert said["policy"] == str(artifact.folder() / "model")
    assert Path(said["manifest"]).is_file()
    assert store.runs() == [said["run"]]
    assert store.read_run(said["run"]) == said


def test_the_second_time_all_is_found(
    loaded: Loaded, store: ArtifactStore, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code_of(loaded, sound(), store, as_json=True, verbose=False)
    capfd.readouterr()

    def start(cluster: object) -> None:
        raise AssertionError("a cluster was started for nothing")

    monkeypatch.setattr(local, "start", start)
    assert code_of(loaded, sound(), store, as_json=True, verbose=False) == 0
    assert all(step["cached"] for step in json.loads(capfd.readouterr().out)["steps"])


def test_a_run_whose_stage_fails(loaded: Loaded, store: ArtifactStore, capfd: pytest.CaptureFixture[str]) -> None:
    assert code_of(loaded, broken(), store, as_json=True, verbose=False) == 1
    captured = capfd.readouterr()
    said = json.loads(captured.out)
    assert (said["status"], said["error"], said["policy"]) == ("failed", "round-1/train: it always fails", None)
    assert [step["key"] for step in said["steps"]] == ["round-1/prepare"]
    assert "it always fails" in captured.err
    assert said["log"] in captured.err


def test_an_interrupted_run_says_so(loaded: Loaded, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(cluster: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(local, "start", start)
    assert code_of(loaded, sound(), store, as_json=False, verbose=False) == 130
    (name,) = store.runs()
    found = store.read_run(name)
    assert found is not None
    assert found["status"] == "interrupted"


@pytest.mark.parametrize(("ends_with", "code"), [(KeyboardInterrupt(), 130), (StoreError("store x is away"), 1)])
def test_a_run_ends_as_it_did_when_its_record_cannot_be_written(
    ends_with: BaseException, code: int, loaded: Loaded, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def away(self: ArtifactStore, name: str, document: object) -> None:
        raise StoreError("store x is away")

    def start(cluster: object) -> None:
        monkeypatch.setattr(ArtifactStore, "write_run", away)
        raise ends_with

    monkeypatch.setattr(local, "start", start)
    assert code_of(loaded, sound(), store, as_json=False, verbose=False) == code
    said = capfd.readouterr().out
    assert ("failed: store x is away" if code == 1 else "the same command continues") in said.replace(
        "StoreError: ", ""
    )


def test_a_damaged_result_is_an_error_and_no_crash(
    loaded: Loaded, store: ArtifactStore, capfd: pytest.CaptureFixture[str]
) -> None:
    code_of(loaded, sound(), store, as_json=True, verbose=False)
    capfd.readouterr()
    opened(store, sound().policy).path("number").unlink()
    assert code_of(loaded, sound(), store, as_json=True, verbose=False) == 1
    said = json.loads(capfd.readouterr().out)
    assert said["status"] == "failed"
    assert "is damaged" in said["error"]


def test_a_cluster_that_cannot_be_started_is_an_error_and_no_crash(
    loaded: Loaded, store: ArtifactStore, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(cluster: object) -> None:
        raise OSError("no room in shared memory")

    monkeypatch.setattr(local, "start", start)
    assert code_of(loaded, sound(), store, as_json=True, verbose=False) == 1
    said = json.loads(capfd.readouterr().out)
    assert said["status"] == "failed"
    assert "no room in shared memory" in said["error"]


@pytest.mark.parametrize("name", ["a [red] b", "old[/old]"])
def test_square_brackets_in_a_path_are_shown_as_they_are(
    loaded: Loaded, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    store = ArtifactStore(str(tmp_path / name))
    assert code_of(loaded, sound(), store, as_json=False, verbose=False) == 0
    assert f"{name}/artifacts" in capfd.readouterr().out


def test_the_terminal_shows_steps_and_the_log_keeps_the_chatter(loaded: Loaded, tmp_path: Path) -> None:
    """In a process of its own: what Python, C and children print is diverted by file descriptor."""
    program = [sys.executable, "-c", CHATTER, str(loaded.path), str(tmp_path / "store")]
    done = subprocess.run(program, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    assert sum("round-1/prepare" in line for line in done.stdout.splitlines()) == 1
    assert "failed at round-1/train: it always fails" in done.stdout
    assert "chatter" not in done.stdout
    assert "Traceback" not in done.stdout
    (log,) = (tmp_path / "store" / "logs").iterdir()
    assert str(log) in done.stdout
    for part in ("chatter of Python", "chatter of C", "chatter of a child", "Traceback"):
        assert part in log.read_text()


def test_a_policy_that_needs_its_virtual_tokens_says_where_they_are(
    loaded: Loaded, store: ArtifactStore, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(as_json: bool) -> str:
        assert code_of(loaded, sound(), store, as_json=as_json, verbose=False) == 0
        return capfd.readouterr().out

    assert json.loads(run(True))["adapter"] is None
    assert "adapter " not in run(False)
    monkeypatch.setattr(Artifact, "has", lambda artifact, name: name == "adapter/adapter_config.json")
    monkeypatch.setattr(Artifact, "path", lambda artifact, name: Path(name))
    monkeypatch.setattr(summary, "is_prompt_learning", lambda config: True)
    document = json.loads(run(True))
    assert Path(document["adapter"]).parent == Path(document["policy"]).parent
    assert f"adapter   {document['adapter']}" in run(False)
