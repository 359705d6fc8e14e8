"""Kill the driver or a training worker at some moment: the same command continues and comes to the same end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from tests import specs, tiny


def rondo(spec: Path, store: Path) -> list[str]:
    return [sys.executable, "-m", "pipelines", "run", str(spec), "--store", str(store), "--json"]


def run(spec: Path, store: Path) -> dict[str, Any]:
    done = subprocess.run(rondo(spec, store), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        assert process.poll() is None, f"ended early: {process.communicate()}"
        assert time.monotonic() < deadline, "did not happen within 180 s"
        time.sleep(0.1)


def checkpoints(store: Path) -> list[Path]:
    """Training checkpoints that Ray Train has registered."""
    snapshots = store.glob("work/*/ray-train/checkpoint_manager_snapshot.json")
    return [path for path in snapshots if "checkpoint_" in path.read_text()]


def spec(folder: Path) -> Path:
    """Long enough to be killed in the middle: 60 steps with a checkpoint every 5."""
    model = tiny.save(folder / "model")
    train = {"learning_rate": 1e-3, "batch_size": 4, "epochs": 10, "precision": "fp32"}
    return specs.offline(folder, model, train=train, resources={"train": {"checkpoint_every": 5}})


def weights(summary: dict[str, Any]) -> dict[str, Any]:
    return dict(load_file(Path(summary["policy"]) / "model.safetensors"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return run(spec(folder), folder / "store")


def steps_taken(summary: dict[str, Any]) -> list[int]:
    path = Path(summary["policy"]).parent / "metrics.jsonl"
    return [int(json.loads(line)["step"]) for line in path.read_text().splitlines()]


def same_weights(a: dict[str, Any], b: dict[str, Any]) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def test_a_killed_driver_continues_from_the_checkpoint(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    path, store = spec(tmp_path), tmp_path / "store"
    process = subprocess.Popen(rondo(path, store), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: checkpoints(store), process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not list(store.glob("artifacts/*/manifest.json.*"))
    summary = run(path, store)
    cached = {step["key"]: step["cached"] for step in summary["steps"]}
    assert cached["round-1/reference"]
    assert not cached["round-1/train"]
    assert steps_taken(summary) == list(range(1, 61))
    assert same_weights(summary, undisturbed)
    assert "continued from step" in "".join(p.read_text() for p in store.glob("logs/*.log"))


def test_a_killed_worker_is_replaced_and_continues(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    path, store = spec(tmp_path), tmp_path / "store"
    process = subprocess.Popen(rondo(path, store), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: checkpoints(store), process)
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [p for p in children if "RayTrainWorker" in "".join(p.cmdline())]
    assert workers, "no training worker found"
    workers[0].kill()
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    summary = json.loads(output)
    assert steps_taken(summary) == list(range(1, 61))
    assert same_weights(summary, undisturbed)


def test_two_runs_on_one_store_do_the_work_once(tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model")
    path, store = specs.offline(tmp_path, model), tmp_path / "store"
    both = [
        subprocess.Popen(rondo(path, store), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    summaries = []
    for process in both:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        summaries.append(json.loads(output))
    assert summaries[0]["policy"] == summaries[1]["policy"]
    for first, second in zip(*(summary["steps"] for summary in summaries), strict=True):
        assert first["cached"] != second["cached"], f"{first['key']} was not done exactly once"
