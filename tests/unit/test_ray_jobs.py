"""Jobs of a running Ray cluster: what its job server would be sent, and what is said when it does not answer."""

from __future__ import annotations

import contextlib
import http.server
import json
import shlex
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from clusters.job import JobSpec
from clusters.ray_jobs import body
from clusters.slurm import SlurmCluster
from tests.unit.test_cli import rondo
from tests.unit.workspace import RAY

SLURM = SlurmCluster(kind="slurm", store="s3://bucket/runs", cpus_per_node=8, time="1:00:00")


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


def test_a_cluster_that_takes_a_question_and_says_nothing_is_given_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clusters.ray_jobs._SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as server:
        (folder / "ray.yaml").write_text(RAY.replace(":1\n", f":{server.getsockname()[1]}\n"))
        found = rondo("check", "sent/spec.yaml", "--cluster", "ray.yaml")
    assert found.exit_code == 2
    assert "no Ray cluster answers at" in found.stderr


def test_names_that_could_be_options_or_numbers_are_made_good(folder: Path) -> None:
    assert JobSpec("x-1", "x", "--help.yaml", (), folder, None).here == ("rondo", "run", "./--help.yaml")
    shown = rondo("submit", "sent/spec.yaml", "--cluster", "ray.yaml", "--dry-run", "--set", f"name=7{'x' * 60}").stdout
    (name,) = (line.split()[1] for line in shown.splitlines() if line.startswith("submission_id"))
    assert name.startswith("run-7xx")
    assert len(name) <= 47
