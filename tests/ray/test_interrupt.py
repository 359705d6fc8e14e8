"""Ctrl-C at any time: one line, exit code 130, nothing broken; the same command continues. So does a training whose
worker is killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path

from tests import specs
from tests.ray import processes


def interrupt(process: processes.subprocess.Popen[str]) -> dict[str, object]:
    """What a terminal does on Ctrl-C: every process of the group gets the signal.

    Python drops an exception that a signal raises inside a destructor, and a library's destructor may be running:
    like a person, press again when nothing happens.
    """
    for _ in range(3):
        os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
            break
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "the same command continues" in errors
    summary: dict[str, object] = json.loads(output)
    return summary


def test_in_training_and_in_the_rollout_after_it(tmp_path: Path) -> None:
    specs.jsonl(tmp_path / "heldout.jsonl", specs.prompts(80))
    path = processes.long_training(
        tmp_path,
        prompts={"heldout": "heldout.jsonl"},
        judge={"use": "rules", "max_words": 20},
        rollout={"engine": "transformers", "max_tokens": 100, "max_length": 256},
    )
    store = tmp_path / "store"

    first = processes.start(path, store)
    processes.wait_for(lambda: processes.checkpoints(store), first)
    (worker,) = processes.children(first.pid, "ray::single_worker")
    worker.kill()
    before = max(file.name for file in processes.checkpoints(store))
    processes.wait_for(lambda: max(file.name for file in processes.checkpoints(store)) > before, first)  # replaced
    assert interrupt(first)["status"] == "interrupted"

    second = processes.start(path, store)
    processes.wait_for(lambda: processes.children(second.pid, "ray::Generator"), second)
    assert interrupt(second)["status"] == "interrupted"

    # With -v the libraries' chatter stays out of standard output too.
    summary = processes.run(path, store, "-v", "--set", "rollout.max_tokens=4")
    cached = {step["key"]: step["cached"] for step in summary["steps"]}
    assert cached["round-1/train"]
    metrics = (Path(summary["policy"]).parent / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == list(range(1, 61))
    assert summary["rounds"][0]["win_rate"]["prompts"] == 80
