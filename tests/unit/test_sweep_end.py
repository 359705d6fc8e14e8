"""How a sweep ends: what is said and written, win rates of those that are through, and what is refused before."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from pipelines.plan.steps import Step
from pipelines.run.connection import Connection
from pipelines.run.runner import StepFailed
from pipelines.run.store import ArtifactStore
from pipelines.sweep import end
from pipelines.sweep.one import _Trials
from pipelines.sweep.record import Record, head
from pipelines.sweep.trials import Space
from stages.base import StageError
from tests.unit import workspace
from tests.unit.test_cli import rondo

SPEC = workspace.SPEC + "sweep: {space: {beta: [1, 2, 3]}, search: grid, objective: win_rate, scheduler: none}\n"
Ended = Callable[..., tuple[Record, str]]


@pytest.fixture
def record(tmp_path: Path) -> Record:
    """Of three trials, of which two came to their end."""
    folder = tmp_path / "there"
    folder.mkdir()
    loaded = workspace.loaded(workspace.make(folder), SPEC)
    assert loaded.spec.sweep is not None
    made = Record(ArtifactStore(str(tmp_path / "store")), "tiny-1", head(loaded.spec.sweep, 1, "spec.yaml", "2026"))
    for number in (1, 2, 3):
        made.add(number, {"beta": number})
        made.started(number)
        if number < 3:
            made.ended(number, {"share": 1.0, "scores": {}, "final": True})
    return made


@pytest.fixture
def ended(record: Record, tmp_path: Path) -> Ended:
    """The record, and what is said, after a sweep that ended with a status."""

    def make(status: str) -> tuple[Record, str]:
        out = io.StringIO()
        record.document["status"] = status
        loaded = workspace.loaded(tmp_path / "there", SPEC)
        store = ArtifactStore(str(tmp_path / "store"))
        end.conclude(record, loaded, 1, store, Console(file=out, width=200))
        return record, out.getvalue()

    return make


@pytest.mark.parametrize(
    ("status", "third", "shown", "lead"),
    [
        ("done", "done", "done", "winner"),
        ("done", "failed", "done", "winner"),
        ("done", "running", "time over", "best yet"),
        ("interrupted", "running", "interrupted", "best yet"),
        ("failed", "waiting", "failed", "best yet"),
    ],
)
def test_what_is_said_in_the_end(
    ended: Ended, record: Record, tmp_path: Path, status: str, third: str, shown: str, lead: str
) -> None:
    record.trial(3)["status"] = third
    record.trial(2)["scores"]["win_rate"] = 0.75
    after, said = ended(status)
    assert after.document["status"] == shown
    assert after.trial(3)["status"] == (third if third in ("done", "failed") else "unfinished")
    assert f"{lead:<9} trial 2: " in said
    assert ("the same command goes on" in said) == (shown != "done")
    folder = tmp_path / "store/sweeps/tiny-1"
    assert json.loads((folder / "sweep.json").read_text())["winner"] == 2
    assert {file.name for file in folder.iterdir()} == {"sweep.json", "sweep.html", "trials.csv", "trials.parquet"}


def test_without_a_score_none_has_won(ended: Ended) -> None:
    after, said = ended("done")
    assert after.document["winner"] is None
    assert after.document["command"] is None
    assert "so none has won" in said


class Runs:
    """A runner whose second evaluation fails."""

    def __init__(self) -> None:
        self.listener: Any = None
        self.asked: list[Step] = []

    def run(self, steps: list[Step]) -> None:
        self.asked.append(steps[-1])
        if len(self.asked) == 2:
            raise StepFailed(steps[-1], StageError("no answer")) from StageError("no answer")

    def artifact(self, step: Step) -> Any:
        return SimpleNamespace(summary={"win_rate": {"mean": 0.6}})


def test_a_trial_whose_answers_cannot_be_judged_has_failed_and_no_other(record: Record, tmp_path: Path) -> None:
    record.ended(3, {"share": 1.0, "scores": {}, "final": True})
    folder, out, runs = tmp_path / "there", io.StringIO(), Runs()
    space = Space(workspace.loaded(folder, SPEC).spec, folder, 1)
    trials = _Trials(space, record, Console(file=out, width=200), runs)  # type: ignore[arg-type]
    trials._judge()
    assert [trial["status"] for trial in record.trials] == ["done", "failed", "done"]
    assert record.trial(2)["reason"].endswith("evaluate: no answer")
    assert [trial["scores"] for trial in record.trials] == [{"win_rate": 0.6}, {}, {"win_rate": 0.6}]
    trials._judge()
    assert len(runs.asked) == 3  # who has a win rate is not judged again


@pytest.mark.parametrize(
    ("promote", "out", "part"),
    [
        ("best", "there", "is a folder"),
        ("best", "there/spec.yaml", "is the spec itself"),
        ("null", "best.yaml", "--out needs sweep.promote: best"),
    ],
)
def test_where_the_winners_spec_cannot_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, promote: str, out: str, part: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    workspace.spec(workspace.make(tmp_path / "there"), SPEC)
    found = rondo("sweep", "there/spec.yaml", "--set", f"sweep.promote={promote}", "--out", out)
    assert found.exit_code == 2
    assert part in found.stderr
    assert not (tmp_path / ".rondo").exists()


def test_a_module_beside_the_spec_keeps_the_winners_spec_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    folder = workspace.make(tmp_path / "there")
    (folder / "strict_judge.py").write_text("def judge():\n    return lambda rollouts: []\n")
    workspace.spec(folder, SPEC.replace("{use: sentiment}", '{use: "strict_judge:judge"}'))
    found = rondo("sweep", "there/spec.yaml", "--set", "sweep.promote=best", "--out", "best.yaml")
    assert found.exit_code == 2
    assert "the spec names strict_judge.py, which stands beside it; put the file into that folder" in found.stderr


@pytest.mark.parametrize("sweep", [True, False])
def test_a_sweep_asks_for_the_places_of_its_trials(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sweep: bool
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr("clusters.local.start", lambda cluster: None)
    monkeypatch.setattr("clusters.running.require", asked.update)
    loaded = workspace.loaded(tmp_path / "there", SPEC, "sweep.parallel=3")
    store = ArtifactStore(str(tmp_path / "store"))
    Connection(loaded, store, None, 0.0, print, sweep=sweep).open()
    assert ("sweep.parallel" in asked) == sweep
    assert not sweep or asked["sweep.parallel"].workers == 3


def test_a_spec_without_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    workspace.spec(workspace.make(tmp_path))
    found = rondo("sweep", "spec.yaml")
    assert found.exit_code == 2
    assert "has no sweep section; for example sweep:" in found.stderr
