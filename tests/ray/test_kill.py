"""Kill the driver or a training worker at some moment: the same command continues and comes to the same end."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests import specs, tiny
from tests.ray import processes
from tests.ray.processes import checkpoints, run, wait_for


def weights(summary: dict[str, Any]) -> dict[str, Any]:
    return dict(load_file(Path(summary["policy"]) / "model.safetensors"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return run(processes.long_training(folder), folder / "store")


def steps_taken(summary: dict[str, Any]) -> list[int]:
    path = Path(summary["policy"]).parent / "metrics.jsonl"
    return [int(json.loads(line)["step"]) for line in path.read_text().splitlines()]


def same_weights(a: dict[str, Any], b: dict[str, Any]) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def test_what_was_finished_at_a_kill_is_not_made_again(tmp_path: Path) -> None:
    """Killed while rows are tokenised and scored, part by part."""
    train = {"learning_rate": 1e-3, "batch_size": 512, "epochs": 1, "precision": "fp32"}
    path = specs.offline(tmp_path, tiny.save(tmp_path / "model"), 2000, train=train)
    store = tmp_path / "store"
    finished: dict[str, str] = {}
    for number in (1, 3):  # parts of 1,000 tokenised and of 256 scored pairs
        process = processes.start(path, store)
        wait_for(lambda least=number: len(processes.parts(store)) >= least, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        finished |= processes.parts(store)
    summary = run(path, store)
    made = {part["place"] for manifest in processes.manifests(store) for part in manifest["parts"]}
    assert set(finished.values()) <= made
    assert not processes.parts(store)
    rows = {step["key"]: step for step in summary["steps"]}
    for key, each in (("preferences/pairs.jsonl/encode", 1000), ("round-1/reference", 256)):
        (manifest,) = (one for one in processes.manifests(store) if one["fingerprint"] == rows[key]["fingerprint"])
        counts = [part["counts"]["rows"] for part in manifest["parts"]]
        assert sum(counts) == 2000
        assert counts[0] == each


def test_a_killed_worker_is_replaced_and_continues(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    path, store = processes.long_training(tmp_path), tmp_path / "store"
    process = processes.start(path, store)
    wait_for(lambda: checkpoints(store), process)
    workers = processes.children(process.pid, "ray::single_worker")
    assert workers, "no training worker found"
    workers[0].kill()
    summary = processes.summary_of(process)
    assert steps_taken(summary) == list(range(1, 61))
    assert same_weights(summary, undisturbed)
