"""Jobs on this machine: runs in the background."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from clusters.job import JobStatus
from clusters.kinds import launcher
from clusters.local import LocalCluster
from clusters.slurm import SlurmCluster
from tests.unit.test_cli import rondo

SLURM = SlurmCluster(kind="slurm", store="s3://bucket/runs", cpus_per_node=8, time="1:00:00")


def wait_for(job: str, state: str) -> None:
    until = time.monotonic() + 60
    while state != (now := {row["job"]: row["state"] for row in json.loads(rondo("jobs", "--json").stdout)}[job]):
        assert time.monotonic() < until, f"{job} is {now}"
        time.sleep(0.1)


def test_a_job_in_the_background_of_this_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuses = folder / "refuses"
    refuses.write_text("#!/bin/sh\necho 2 problems in $PWD >&2\nexit 2\n")
    refuses.chmod(0o755)
    monkeypatch.setattr("clusters.background.sys.executable", str(refuses))
    (folder / "local.yaml").write_text("kind: local\ncpus: 1\nstore: kept\n")
    submit = ["submit", "sent/spec.yaml", "--cluster", "local.yaml"]
    shown = rondo(*submit, "--dry-run").stdout
    assert f"rondo run sent/spec.yaml --store kept --cluster {folder}/local.yaml &" in shown
    first = rondo(*submit, "--follow")
    assert first.exit_code == 1
    job = first.stdout.splitlines()[0]
    assert first.stdout == f"{job}\n2 problems in {folder}\n"
    assert first.stderr.endswith(f"job {job} failed: exit code 2\n")
    assert rondo("logs", job).stdout in first.stdout
    (row,) = json.loads(rondo("jobs", "--json").stdout)
    assert (row["state"], row["kind"], row["detail"]) == ("failed", "local", "exit code 2")
    assert "had ended before: failed" in rondo("stop", job).stdout


def test_a_job_in_the_background_is_stopped_or_seen_to_be_killed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = folder / "slow"
    slow.write_text("#!/bin/sh\ntrap 'exit 130' INT\necho begun\nwhile :; do sleep 0.05; done\n")
    slow.chmod(0o755)
    (folder / "local.yaml").write_text("kind: local\n")
    monkeypatch.setattr("clusters.background.sys.executable", str(slow))
    submit = ["submit", "sent/spec.yaml", "--cluster", "local.yaml"]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a script that puts it in the background
    job = rondo(*submit).stdout.strip()
    signal.signal(signal.SIGINT, before)
    until = time.monotonic() + 60
    while "begun" not in rondo("logs", job).stdout:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert rondo("stop", job).stdout == f"{job}: stopped\n"
    other = rondo(*submit).stdout.strip()
    wait_for(other, "running")
    (process,) = (folder / "state").rglob(f"{other}/process.json")
    os.killpg(json.loads(process.read_text())["group"], 9)
    wait_for(other, "failed")
    assert [row["detail"] for row in json.loads(rondo("jobs", "--json").stdout)] == ["its process was killed", ""]


def test_a_job_that_was_stopped_before_it_had_begun_is_no_failure(folder: Path) -> None:
    place = folder / "state" / "rondo" / "jobs" / "local" / "tiny-1"
    place.mkdir(parents=True)
    for name in ("lock", "process.json"):
        (place / name).write_text("{}")
    to = launcher(LocalCluster(kind="local"), folder)
    assert to.status("tiny-1") == JobStatus("failed", "its process was killed")
    (place / "stopped").touch()
    assert to.status("tiny-1") == JobStatus("stopped")


def test_a_run_takes_this_machines_settings_and_no_other_clusters(folder: Path) -> None:
    other = rondo("run", "sent/spec.yaml", "--cluster", "ray.yaml")
    assert other.exit_code == 2
    assert "ray.yaml is of kind ray: rondo submit sends runs there" in other.stderr
    (folder / "local.yaml").write_text("kind: local\ncpus: 3\n")
    wide = rondo("run", "sent/spec.yaml", "--cluster", "local.yaml", "--set", "resources.train.cpus=4")
    assert wide.exit_code == 2
    assert "resources.train: 1 workers with 4 CPUs each; there is room for 0 on nodes with: 3 CPUs" in wide.stderr
    two = rondo("run", "sent/spec.yaml", "--cluster", "local.yaml", "--address", "127.0.0.1:1")
    assert "two clusters" in two.stderr
