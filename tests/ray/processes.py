"""Rondo as a process of its own, for tests that interrupt or kill it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from pipelines.run.store import ArtifactStore
from tests import specs, tiny


def command(spec: Path, store: Path | str, *options: str) -> list[str]:
    return [sys.executable, "-m", "pipelines", "run", str(spec), "--store", str(store), "--json", *options]


def start(spec: Path, store: Path | str, *options: str, **environment: str) -> subprocess.Popen[str]:
    """In a process group of its own, as a terminal would have it."""
    return subprocess.Popen(
        command(spec, store, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env={**os.environ, **environment},
    )  # fmt: skip


def run(spec: Path, store: Path, *options: str) -> dict[str, Any]:
    done = subprocess.run(command(spec, store, *options), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def summary_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a run says at its end, which has to be a good one."""
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    summary: dict[str, Any] = json.loads(output)
    return summary


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        assert process.poll() is None, f"ended early: {process.communicate()}"
        assert time.monotonic() < deadline, "did not happen within 180 s"
        time.sleep(0.1)


def children(pid: int, name: str) -> list[psutil.Process]:
    """Processes below ``pid`` whose command line holds ``name``."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # gone meanwhile
            if name in " ".join(child.cmdline()):
                found.append(child)
    return found


def checkpoints(store: Path) -> list[Path]:
    """The records of complete training checkpoints."""
    return list(store.glob("work/*/*/checkpoints/*"))


def parts(store: Path) -> dict[str, str]:
    """The places of the parts that unfinished steps have finished, by their records; not of those steps that read the
    user's files, which begin anew."""
    without = ArtifactStore(str(store)).output("any", {}).inputs
    records = [path for path in store.glob("work/*/*/parts/*") if path.parts[-3] != without and "#" not in path.name]
    return {str(path): json.loads(path.read_text())["place"] for path in records}


def manifests(store: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in store.glob("artifacts/*/*/manifest.json")]


def long_training(
    folder: Path, train: Mapping[str, Any] | None = None, resources: Mapping[str, Any] | None = None, **sections: Any
) -> Path:
    """A spec that is long enough to be stopped in the middle: 60 steps with a checkpoint every 5."""
    model = tiny.save(folder / "model")
    settings = {"learning_rate": 1e-3, "batch_size": 4, "epochs": 10, "precision": "fp32", **(train or {})}
    given = {"train": {"checkpoint_every": 5, **(resources or {})}}
    return specs.offline(folder, model, train=settings, resources=given, **sections)
