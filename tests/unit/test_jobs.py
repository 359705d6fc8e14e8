"""Jobs that were sent: how they are, what they print, how they end; and what a job takes along. Without a cluster."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from clusters.job import JobSpec, JobStatus
from clusters.kinds import KINDS, launcher
from clusters.ray_jobs import RayCluster, RayJobs
from clusters.slurm import Slurm, SlurmCluster
from pipelines.commands import sent
from pipelines.commands.follow import follow
from stages.base import StageError
from tests.unit.test_cli import rondo

SLURM = SlurmCluster(kind="slurm", store="s3://bucket/runs", cpus_per_node=8, time="1:00:00")


class Told:
    """A cluster that says what it is told to: a status and all of the log, or an error, at each look."""

    knows = frozenset({"labels"})

    def __init__(self, *looks: tuple[str, str] | StageError) -> None:
        self.looks = list(looks)
        self.text = ""

    def status(self, job: str) -> JobStatus:
        look = self.looks.pop(0)
        if isinstance(look, StageError):
            raise look
        state, self.text = look
        return JobStatus(state, "why" if state == "pending" else "")  # type: ignore[arg-type]

    def logs(self, job: str) -> str:
        return self.text


def test_what_a_job_prints_is_shown_once_as_it_comes(capsys: pytest.CaptureFixture[str]) -> None:
    away = StageError("away")
    told = Told(("pending", ""), ("pending", ""), ("running", "a\n"), away, ("running", "a\nb"), ("done", "a\nb\nc\n"))
    assert follow(told, "job", 0.0, 60.0).state == "done"  # type: ignore[arg-type]
    printed = capsys.readouterr()
    assert printed.out == "a\nb\nc\n"
    assert printed.err == "pending: why\n"


def test_a_cluster_that_does_not_answer_is_not_waited_for_at_first_and_not_for_ever() -> None:
    with pytest.raises(StageError, match="away"):
        follow(Told(StageError("away")), "job", 0.0, 60.0)  # type: ignore[arg-type]
    with pytest.raises(StageError, match="away"):
        follow(Told(("running", ""), *[StageError("away")] * 1000), "job", 0.01, 0.05)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("squeue", "sacct", "expected"),
    [("PENDING|Resources", "", JobStatus("pending", "Resources")), ("RUNNING|None", "", JobStatus("running")),
     ("", "COMPLETED", JobStatus("done")), ("", "CANCELLED by 1000", JobStatus("stopped")),
     ("OUT_OF_MEMORY|x", "", JobStatus("failed", "out of memory")), ("", "TIMEOUT", JobStatus("failed", "timeout")),
     ("", "FAILED", JobStatus("failed", "failed")), ("", "", JobStatus("gone", "Slurm does not know it (any more)"))],
)  # fmt: skip
def test_how_a_job_of_slurm_is(
    program: Callable[[str, str], None], tmp_path: Path, squeue: str, sacct: str, expected: JobStatus
) -> None:
    # Of a job that it has forgotten squeue says that its number is wrong.
    known = f'echo "{squeue}"' if squeue else 'case "$*" in *--jobs*) echo "Invalid job id" >&2; exit 1;; esac'
    program("squeue", known)
    program("sacct", f'echo "{sacct}"')
    assert Slurm(SLURM, tmp_path).status("4711") == expected


def test_a_job_of_slurm_is_read_and_stopped(program: Callable[[str, str], None], tmp_path: Path) -> None:
    to = Slurm(SLURM, tmp_path)
    (tmp_path / "other-4711.log").write_text("of another job")
    assert to.logs("4711") == ""
    (tmp_path / "rondo-4711.log").write_text("a line\n")
    assert to.logs("4711") == "a line\n"
    program("scancel", f'echo "$@" > {tmp_path}/stopped')
    to.stop("4711")
    assert (tmp_path / "stopped").read_text() == "4711\n"
    program("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    program("sacct", "exit 1")
    with pytest.raises(StageError, match=r"Slurm refused \(squeue\): slurm_load_jobs error: Unable to contact"):
        to.status("4711")
    for call in (to.status, to.logs, to.stop):
        with pytest.raises(StageError, match="a job of Slurm has a number"):
            call("*; rm -rf x")


def test_the_scripts_words_are_good_shell(folder: Path) -> None:
    (folder / "slurm.yaml").write_text(
        'kind: slurm\nstore: /shared/store\nnodes: 2\ncpus_per_node: 8\ngpus_per_node: 1\ntime: "4:00:00"\n'
    )
    options = ["--set", "train.loss={use: simpo}", "--set", "judge.must_contain=['$(x)']"]
    text = rondo("submit", "sent/spec.yaml", "--cluster", "slurm.yaml", "--dry-run", *options[:2]).stdout
    assert text.startswith("#!/bin/bash")
    shellcheck = Path(os.sys.executable).parent / "shellcheck"  # type: ignore[attr-defined]
    done = subprocess.run([shellcheck, "-"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


def test_a_job_is_found_by_enough_of_its_name(folder: Path) -> None:
    for name in ("tiny-aaa", "tiny-aab"):
        job = JobSpec(name, "tiny", "spec.yaml", (), folder, None)
        cluster = RayCluster(kind="ray", address="http://127.0.0.1:1", store="/shared/store")
        sent.remember(sent.of_job(job, name, cluster, folder / "ray.yaml"))
    assert sent.find("aab", None).job == "tiny-aab"
    many = rondo("logs", "tiny")
    assert many.exit_code == 2
    assert "2 jobs match: tiny-aaa (" in many.stderr
    for command, name in (("logs", "other"), ("stop", "other"), ("stop", "tiny-aa")):
        none = rondo(command, name)
        assert none.exit_code == 2
        assert f"{name}: no such job was sent from here; rondo jobs lists those that were" in none.stderr
    assert sent.find("tiny-aaa", folder / "ray.yaml").spec == "spec.yaml"
    assert sent.find("elsewhere", folder / "ray.yaml").spec == ""
    (Path(os.environ["XDG_STATE_HOME"]) / "rondo" / "jobs" / "ray-broken.json").write_text("{")
    listed = json.loads(rondo("jobs", "--json").stdout)
    assert [(row["job"], row["state"]) for row in listed] == [("tiny-aab", "unknown"), ("tiny-aaa", "unknown")]
    assert "no Ray cluster answers at http://127.0.0.1:1." in listed[0]["detail"]


def test_every_kind_has_a_launcher_that_can_do_the_same(tmp_path: Path) -> None:
    import yaml

    import clusters

    for kind, model in KINDS.items():
        text = (Path(clusters.__file__).parent / f"{kind}.yaml").read_text()
        made = launcher(model.model_validate(yaml.safe_load(text)), tmp_path)
        for method in ("machines", "show", "submit", "status", "logs", "stop"):
            assert callable(getattr(made, method)), (kind, method)
    assert isinstance(launcher(RayCluster(kind="ray", address="http://h", store="/x"), tmp_path), RayJobs)


def test_a_job_that_was_sent_is_named_though_it_cannot_be_remembered(
    folder: Path, program: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "slurm.yaml").write_text('kind: slurm\nstore: /shared/x\ncpus_per_node: 8\ntime: "1:00:00"\n')
    program("sbatch", f"cat > {folder}/asked; echo 4711")
    submit = ["submit", "sent/spec.yaml", "--cluster", "slurm.yaml"]
    (folder / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "file"))
    refused = rondo(*submit)
    assert refused.exit_code == 1
    assert "which cannot be written" in refused.stderr
    assert not (folder / "asked").exists()
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    monkeypatch.setattr(sent, "remember", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    known = rondo(*submit)
    assert (known.exit_code, known.stdout) == (0, "4711\n")
    assert "the job is sent, but not remembered here (disk full)" in known.stderr


def test_a_job_that_is_gone_may_come_back_and_is_asked_for_again(
    folder: Path, program: Callable[[str, str], None]
) -> None:
    job = JobSpec("tiny-1", "tiny", "spec.yaml", (), folder, None)
    for name in ("one", "two"):  # of two clusters that give the same number
        settings = SLURM.model_copy(update={"partition": name})
        sent.remember(sent.of_job(job, "4711", settings, folder / f"{name}.yaml"))
    program("sacct", "true")
    for answer, state in (("", "gone"), ("RUNNING|None", "running"), ("COMPLETED|None", "done")):
        program("squeue", f'echo "{answer}"')
        assert [row["state"] for row in json.loads(rondo("jobs", "--json").stdout)] == [state, state]
    program("squeue", "echo 'Socket timed out' >&2; exit 1")
    assert [row["state"] for row in json.loads(rondo("jobs", "--json").stdout)] == ["done", "done"]
    for file in (folder / "state" / "rondo" / "jobs").iterdir():
        assert file.stat().st_mode & 0o077 == 0


def test_a_job_that_is_started_again_is_shown_from_its_beginning(capsys: pytest.CaptureFixture[str]) -> None:
    told = Told(("running", "first\nfailed\n"), ("running", ""), ("running", "fir"), ("done", "first\nall is well\n"))
    assert follow(told, "job", 0.0, 60.0).state == "done"  # type: ignore[arg-type]
    printed = capsys.readouterr()
    assert printed.out == "first\nfailed\nfirst\nall is well\n"
    assert printed.err == "\nthe job was started again\n"


def test_clusters_that_do_not_answer_keep_nobody_waiting(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes connections and says nothing."""
    monkeypatch.setattr("pipelines.commands.jobs._ANSWER", 0.5)
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        cluster = RayCluster(kind="ray", address=f"http://127.0.0.1:{server.getsockname()[1]}", store="/x")
        for number in range(20):
            job = JobSpec(f"tiny-{number}", "tiny", "spec.yaml", (), folder, None)
            sent.remember(sent.of_job(job, job.id, cluster, folder / "ray.yaml"))
        rows = json.loads(rondo("jobs", "--json").stdout)
    assert {(row["state"], row["detail"]) for row in rows} == {("unknown", "no answer within 0 s")}


def test_a_job_of_elsewhere_or_of_another_version_breaks_no_list(
    folder: Path, program: Callable[[str, str], None]
) -> None:
    (folder / "slurm.yaml").write_text('kind: slurm\nstore: s3://b/x\ncpus_per_node: 8\ntime: "1:00:00"\n')
    program("squeue", "echo 'COMPLETED|None'")
    assert rondo("logs", "99", "--cluster", "slurm.yaml", "--follow").exit_code == 0
    assert json.loads(rondo("jobs", "--json").stdout) == []
    other = sent.of_job(JobSpec("x-1", "x", "x", (), folder, None), "4711", SLURM, folder / "slurm.yaml")
    sent.remember(replace(other, settings={**other.settings, "new": 1}))
    (row,) = json.loads(rondo("jobs", "--json").stdout)
    assert row["state"] == "unknown"
    assert "4711 was sent by another version of Rondo" in row["detail"]
    assert rondo("logs", "47").exit_code == 2  # a number is given whole
