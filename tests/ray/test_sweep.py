"""Sweeps by the real Ray Tune: killed and gone on with, with trials that fail, and with several workers a trial."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipelines.plan import rounds
from pipelines.run.runner import Committed
from pipelines.run.store import ArtifactStore
from pipelines.spec import load
from tests import specs, tiny
from tests.ray import processes
from tests.ray.processes import wait_for

TRAIN = {"batch_size": 4, "epochs": 30, "max_grad_norm": 1e30, "precision": "fp32"}
SWEEP = {"space": {"learning_rate": [1e-3, 1e30, 2e-3]}, "search": "grid", "objective": "heldout_loss"}


def spec(folder: Path, train: dict[str, Any], sweep: dict[str, Any], **sections: Any) -> Path:
    model = tiny.save(folder / "model")
    return specs.offline(folder, model, 24, train=train, sweep=sweep, data={"heldout": 0.2}, **sections)


def sweeping(path: Path) -> list[str]:
    return [sys.executable, "-m", "pipelines", "sweep", str(path), "--store", str(path.parent / "store"), "--json"]


def sweep(path: Path) -> dict[str, Any]:
    done = subprocess.run(sweeping(path), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def record(path: Path) -> dict[str, Any]:
    files = list((path.parent / "store/sweeps").glob("*/sweep.json"))
    return json.loads(files[0].read_text()) if files else {"trials": []}


def statuses(found: dict[str, Any]) -> list[str]:
    return [trial["status"] for trial in found["trials"]]


def made(store: Path) -> Counter[str]:
    """How often each stage was executed to its end."""
    return Counter(manifest["payload"]["stage"] for manifest in processes.manifests(store))


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """A sweep that was killed in its third trial, and gone on with: the spec, and the record before and after."""
    path = spec(tmp_path_factory.mktemp("swept"), TRAIN, {**SWEEP, "scheduler": {"use": "none", "measurements": 3}})
    process = subprocess.Popen(sweeping(path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    wait_for(lambda: [t for t in record(path)["trials"][2:] if 0 < t["share"] < 1], process)  # type: ignore[arg-type]
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return path, record(path), sweep(path)


def test_a_killed_sweep_goes_on_and_failures_are_no_end(swept: Any) -> None:
    _, before, after = swept
    assert statuses(before) == ["done", "failed", "running"]
    assert statuses(after) == ["done", "failed", "done"]
    assert after["trials"][0] == before["trials"][0]
    assert "not finite at step" in after["trials"][1]["reason"]
    training = after["trials"][2]["training"]
    assert [row["step"] for row in training] == list(range(1, training[0]["steps"] + 1))
    assert [point["share"] for point in after["trials"][2]["curve"]] == pytest.approx([1 / 3, 2 / 3, 1.0], abs=0.02)
    best = min((0, 2), key=lambda place: after["trials"][place]["scores"]["heldout_loss"])
    assert after["winner"] == best + 1


def test_trials_share_all_work_and_the_base_model(swept: Any) -> None:
    path, _, _ = swept
    stages = made(path.parent / "store")
    assert stages == {
        "materialise": 1, "ingest": 1, "curate": 1, "encode": 1, "prepare": 2, "reference": 3, "train": 1,
        "heldout": 1,
    }  # fmt: skip
    logs = sorted((path.parent / "store/logs").glob("*-sweep-*.log"))
    said = [log.read_text() for log in logs]
    assert len(said) == 2
    assert said[0].count("base model loaded") == 1  # by the trials that were not killed
    assert said[0].count("base model kept") == 1
    assert (path.parent / "store/sweeps" / record(path)["sweep"] / "sweep.html").stat().st_size > 1 << 20


def test_the_winners_command_finds_the_sweeps_training(swept: Any) -> None:
    path, _, after = swept
    overrides = [word for word in shlex.split(after["command"]) if word.startswith("train.")]
    assert len(overrides) == 1
    loaded = load.load(str(path), overrides)
    planned, committed = rounds.plan(loaded.spec, path.parent), Committed(ArtifactStore(str(path.parent / "store")))
    left = [step.key for step in planned.steps if committed(step) is None]
    assert left == []


def test_trials_of_two_workers_have_both_cpus_and_leave_them_when_they_end_early(tmp_path: Path) -> None:
    """With two CPUs there is no room for a third process that reserves one, nor for the places of a trial that is
    gone: the training of the winner, which comes last, would wait for ever."""
    settings = {"space": {"learning_rate": [1e-2, 1e-7]}, "scheduler": {"use": "asha", "reduction": 2, "rungs": 4}}
    resources = {"train": {"workers": 2, "cpus": 1}}
    path = spec(tmp_path, {**TRAIN, "epochs": 12}, {**SWEEP, **settings}, resources=resources)
    found = sweep(path)
    assert statuses(found) == ["done", "stopped"]
    assert len(found["trials"][0]["curve"]) == 4
    assert made(path.parent / "store")["train"] == 1
