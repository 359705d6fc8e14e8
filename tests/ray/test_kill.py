"""Kill the driver at some moment: the same command continues and makes nothing again."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests import specs, tiny
from tests.ray import processes
from tests.ray.processes import run, wait_for


def test_what_was_finished_at_a_kill_is_not_made_again(tmp_path: Path) -> None:
    """Killed while rows are tokenised and scored, part by part."""
    train = {"learning_rate": 1e-3, "batch_size": 512, "epochs": 1, "precision": "fp32"}
    path = specs.offline(tmp_path, tiny.save(tmp_path / "model"), 1400, train=train)
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
        assert sum(counts) == 1400
        assert counts[0] == each
