"""Workers that share the weights out, on a real Ray Train, from the command line as a user would have it."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.ray import processes
from tests.ray.processes import checkpoints, run, wait_for

# The user's own code stands beside the spec, and the workers of Ray Train have to find it there.
LOSS = """
import torch.nn.functional as F

def dpo(x, beta):
    return -F.logsigmoid(beta * (x.chosen - x.ref_chosen - x.rejected + x.ref_rejected))
"""


def spec(folder: Path, **resources: Any) -> Path:
    (folder / "beside_the_spec.py").write_text(LOSS)
    return processes.long_training(folder, {"loss": {"use": "beside_the_spec:dpo"}}, resources)


def metrics(policy: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (policy.parent / "metrics.jsonl").read_text().splitlines()]


def shards(store: Path) -> set[str]:
    return {path.name[:11] for path in store.glob("work/*/*/steps/*/shard-*.safetensors")}


def test_two_sharing_workers_that_are_killed_go_on_as_one(tmp_path: Path) -> None:
    store = tmp_path / "store"
    unbroken = run(spec(tmp_path, workers=1), store)
    policy = Path(unbroken["policy"])
    expected, weights = metrics(policy), load_file(policy / "model.safetensors")
    assert expected[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert expected[-1]["loss"] < 0.5

    shutil.rmtree(policy.parents[1])  # the artifact, so that the training alone is done again
    process = processes.start(spec(tmp_path, strategy="fsdp", workers=[1, 2]), store)
    wait_for(lambda: checkpoints(store), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert shards(store) == {"shard-00000", "shard-00001"}
    policy = Path(run(spec(tmp_path, workers=1), store)["policy"])

    found = metrics(policy)
    assert [row["step"] for row in found] == list(range(1, 61))
    for name in ("loss", "grad_norm", "chosen_logp", "tokens"):
        assert [row[name] for row in found] == pytest.approx([row[name] for row in expected], rel=1e-4), name
    ended = load_file(policy / "model.safetensors")
    assert ended.keys() == weights.keys()
    assert all((ended[name] - weights[name]).abs().max() < 1e-4 for name in ended)
    logs = "".join(path.read_text() for path in store.glob("logs/*.log"))
    assert "continued from step" in logs
    assert "Failed to query" not in logs  # Ray Train would say so every second
