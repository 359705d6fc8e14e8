"""Jobs that were sent: how they are, what they print, how they end; and what a job takes along. Without a cluster."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shlex
import signal
import socket
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clusters import folder as travelling
from clusters.job import JobSpec, JobStatus
from clusters.kinds import KINDS, launcher
from clusters.ray_jobs import RayCluster, RayJobs, body
from clusters.slurm import Slurm, SlurmCluster
from pipelines.commands import sent
from pipelines.commands.follow import follow
from stages.base import StageError
from tests.unit import workspace
from tests.unit.test_cli import rondo
from tests.unit.workspace import SPEC

SLURM = SlurmCluster(kind="slurm", store="s3://bucket/runs", cpus_per_node=8, time="1:00:00")
RAY = "kind: ray\naddress: http://127.0.0.1:1\nstore: /shared/store\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return workspace.sent(tmp_path, "ray.yaml", RAY)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a stand-in of a program on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")

    def make(name: str, body: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)

    return make


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


def test_an_address_that_does_not_answer_says_which_and_how_to_start_one(folder: Path) -> None:
    for command in ("check", "submit"):
        found = rondo(command, "sent/spec.yaml", "--cluster", "ray.yaml")
        assert found.exit_code == 2
        assert "no Ray cluster answers at http://127.0.0.1:1. " in found.stderr
        assert "ray start --head" in found.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [("kind: ray\nadress: x\nstore: /x\n", "ray.yaml:2 adress: unknown key; did you mean 'address'?"),
     ("kind: ray\naddress: 127.0.0.1:8265\nstore: /x\n", "ray.yaml:2 address: expected http://HOST:PORT"),
     ("kind: ray\naddress: http://me:secret@host\nstore: /x\n", "ray.yaml:2 address: expected http://HOST:PORT"),
     ("kind: ray\naddress: http://host\nstore: runs\n", "ray.yaml:3 store: expected an absolute path, or a bucket")],
)  # fmt: skip
def test_mistakes_in_a_file_of_kind_ray(folder: Path, text: str, message: str) -> None:
    (folder / "ray.yaml").write_text(text)
    found = rondo("submit", "sent/spec.yaml", "--cluster", "ray.yaml", "--dry-run")
    assert found.exit_code == 2
    assert message in found.stderr


def test_a_dry_run_asks_nobody_and_shows_what_would_be_sent(folder: Path) -> None:
    shown = rondo("submit", "sent/spec.yaml", "--cluster", "ray.yaml", "--dry-run", "--set", "train.beta=0.2")
    assert shown.exit_code == 0, shown.output
    assert "POST: http://127.0.0.1:1/api/jobs/" in shown.stdout
    assert "rondo run ./spec.yaml --set train.beta=0.2 --store /shared/store --address auto" in shown.stdout
    assert not list((folder / "state").rglob("*"))
    both = rondo("submit", "sent/spec.yaml", "--cluster", "ray.yaml", "--dry-run", "--follow")
    assert both.exit_code == 2


def test_the_entry_point_reaches_the_job_word_by_word(tmp_path: Path) -> None:
    words = ("--set", "a='; touch stolen; $(touch stolen) \"", "--set", "`touch stolen`\n#")
    job = JobSpec("tiny-1", "tiny", "in/x", words, tmp_path, tmp_path / "in" / "-x '$(touch stolen).yaml")
    line = body(job)["entrypoint"]
    assert shlex.split(line) == ["rondo", "run", "./-x '$(touch stolen).yaml", *words]


def test_what_stands_outside_of_the_folder_is_named_before_anything_is_sent(folder: Path) -> None:
    for name in ("train.jsonl", "judges.py"):
        (folder / name).write_text('{"prompt": "Hi"}\n' if name == "train.jsonl" else "class Judge:\n    pass\n")
    (folder / "sent" / "spec.yaml").write_text(
        SPEC.replace("train: train.jsonl", "train: ../train.jsonl").replace("sentiment", '"judges:Judge"')
    )
    found = rondo("submit", "sent/spec.yaml", "--cluster", "ray.yaml", "--dry-run")
    assert found.exit_code == 2
    assert "2 problems" in found.stderr
    assert "spec.yaml:3 prompts.train: ../train.jsonl does not travel with the job" in found.stderr
    assert "judges.py stands in the current folder; put it beside the spec" in found.stderr


def test_the_same_folder_is_packed_into_the_same_bytes_without_what_is_hidden(folder: Path) -> None:
    place = folder / "sent"
    for name in (".env", "__pycache__/x.pyc", "venv/pyvenv.cfg", "venv/lib.py", "deep/er/a.txt", ".git/config"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("x")
    (place / "link").symlink_to(folder / "ray.yaml")
    for name in ("one.zip", "two.zip"):
        travelling.pack(place, folder / name, 1 << 20)
        os.utime(place / "deep" / "er" / "a.txt", (0, 0))
    assert (folder / "one.zip").read_bytes() == (folder / "two.zip").read_bytes()
    with zipfile.ZipFile(folder / "one.zip") as archive:
        names = archive.namelist()
    assert "deep/er/a.txt" in names
    assert "spec.yaml" in names
    assert not [name for name in names if name.startswith((".", "venv", "__pyc", "link"))]
    (place / "large").write_bytes(b"x" * (1 << 20))
    with pytest.raises(StageError, match=r"holds more than 1.0 MiB: large \(1.0 MiB\), "):
        travelling.pack(place, folder / "three.zip", 1 << 20)


def test_a_run_takes_this_machines_settings_and_no_other_clusters(folder: Path) -> None:
    other = rondo("run", "sent/spec.yaml", "--cluster", "ray.yaml")
    assert other.exit_code == 2
    assert "ray.yaml is of kind ray: rondo submit sends runs there; rondo run is for this machine" in other.stderr
    (folder / "local.yaml").write_text("kind: local\ncpus: 3\n")
    wide = rondo("run", "sent/spec.yaml", "--cluster", "local.yaml", "--set", "resources.train.cpus=4")
    assert wide.exit_code == 2
    assert "resources.train: 1 workers with 4 CPUs each; there is room for 0 on nodes with: 3 CPUs" in wide.stderr
    two = rondo("run", "sent/spec.yaml", "--cluster", "local.yaml", "--address", "127.0.0.1:1")
    assert "two clusters" in two.stderr


def test_every_kind_has_a_launcher_that_can_do_the_same(tmp_path: Path) -> None:
    import yaml

    import clusters

    for kind, model in KINDS.items():
        text = (Path(clusters.__file__).parent / f"{kind}.yaml").read_text()
        made = launcher(model.model_validate(yaml.safe_load(text)), tmp_path)
        for method in ("machines", "show", "submit", "status", "logs", "stop"):
            assert callable(getattr(made, method)), (kind, method)
    assert isinstance(launcher(RayCluster(kind="ray", address="http://h", store="/x"), tmp_path), RayJobs)


def test_what_is_named_goes_along_or_is_said(folder: Path) -> None:
    """A link out of the folder, a folder that is one, a recipe by its path, a spec that is a link."""
    (folder / "elsewhere").mkdir()
    (folder / "sent" / "heldout.jsonl").rename(folder / "elsewhere" / "heldout.jsonl")
    (folder / "sent" / "heldout.jsonl").symlink_to(folder / "elsewhere" / "heldout.jsonl")
    (folder / "sent" / "data").symlink_to(folder / "elsewhere")
    for options in ([], ["--set", "prompts.heldout=data/*.jsonl"]):
        found = rondo("submit", "sent/spec.yaml", "--cluster", "ray.yaml", "--dry-run", *options)
        assert found.exit_code == 2
        assert "prompts.heldout: " in found.stderr
        assert "does not travel with the job" in found.stderr
    (folder / "sent" / "heldout.jsonl").unlink()
    (folder / "elsewhere" / "heldout.jsonl").rename(folder / "sent" / "heldout.jsonl")
    (folder / "link.yaml").symlink_to("sent/spec.yaml")
    for name in ("link.yaml", "sent/spec.yaml"):
        shown = rondo("submit", name, "--cluster", "ray.yaml", "--dry-run", "--set", "prompts.train=tr*.jsonl").stdout
        assert "entrypoint: rondo run ./spec.yaml " in shown
        assert f"working_dir: {folder}/sent\n" in shown
    shown = rondo("submit", "quickstart", "--cluster", "ray.yaml", "--dry-run").stdout
    assert "entrypoint: rondo run quickstart " in shown
    assert "working_dir" not in shown


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


@contextlib.contextmanager
def dashboard(answers: dict[str, object]) -> Iterator[str]:
    """The address of a server that answers each path in JSON."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answers.get(self.path.partition("?")[0], {})).encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_what_answers_may_be_no_ray(folder: Path) -> None:
    with dashboard({}) as address:
        (folder / "ray.yaml").write_text(RAY.replace("http://127.0.0.1:1", address))
        found = rondo("check", "sent/spec.yaml", "--cluster", "ray.yaml")
    assert found.exit_code == 2
    assert "is no Ray dashboard" in found.stderr


def test_the_file_says_which_cluster_is_asked_and_its_living_machines_count(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    machines = [
        {"node_ip": "one", "state": "ALIVE", "resources_total": {"CPU": 2.0}, "labels": {"zone": "far"}},
        {"node_ip": "two", "state": "DEAD", "resources_total": {"CPU": 64.0}, "labels": None},
    ]
    answers = {"/api/version": {"ray_version": "2.60.0"}, "/api/v0/nodes": {"data": {"result": {"result": machines}}}}
    with dashboard(answers) as address:
        (folder / "ray.yaml").write_text(RAY.replace("http://127.0.0.1:1", address))
        check = ["check", "sent/spec.yaml", "--cluster", "ray.yaml", "--set", "resources.train.label_selector.zone=far"]
        assert rondo(*check).exit_code == 0, rondo(*check).output
        found = rondo(*check, "--set", "resources.train.cpus=3")
    assert found.exit_code == 2
    assert "there is room for 0 on nodes with: 2 CPUs, 0 GPUs, zone=far (ray.yaml)" in found.stderr
