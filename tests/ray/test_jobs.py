"""Jobs on a running Ray cluster, with its job server and a token: sent, followed, stopped, killed, continued."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import yaml

from clusters import rayjob
from clusters.job import JobSpec
from clusters.kuberay import KubeRayCluster
from pipelines.spec import clusterfile
from tests.ray import processes

PENALTY = """
def penalty(x, rewards, pairs, *, broken):
    if broken:
        raise ValueError("the penalty is broken")
    return 0 * x.chosen
"""
KUBERAY = """\
kind: kuberay
image: rondo
volume: {{claim: disk, path: {folder}}}
store: {folder}/store
env: {{RONDO_STORE_PATIENCE: '5'}}
"""


@dataclass
class Cluster:
    folder: Path
    dashboard: str
    head: subprocess.Popen[bytes]
    environment: dict[str, str] = field(repr=False)

    def rondo(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pipelines", *arguments], capture_output=True, text=True, check=False, timeout=200,
            cwd=self.folder, env={**self.environment, **environment},
        )  # fmt: skip

    def jobs(self) -> dict[str, str]:
        """How each job is."""
        return {row["job"]: row["state"] for row in json.loads(self.rondo("jobs", "--json").stdout)}

    def drivers(self) -> list[psutil.Process]:
        """Of jobs, on the cluster."""
        return [
            each
            for each in processes.children(self.head.pid, "spec.yaml")
            if "--address" in each.cmdline() and "sh" not in Path(each.cmdline()[0]).name
        ]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def head_container(file: Path) -> dict[str, str]:
    """The environment that a manifest gives to Ray's head, and through it to the job."""
    cluster = clusterfile.load(file)
    assert isinstance(cluster, KubeRayCluster)
    job = rayjob.manifest(cluster, JobSpec("x-0", "x", "quickstart", (), file.parent, None), {})["items"][1]
    (container,) = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    return {each["name"]: each["value"].replace("/rondo", str(file.parent / "pod")) for each in container["env"]}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("jobs")
    programs = Path(sys.executable).parent
    ports = {"port": free_port(), "dashboard-port": free_port(), "dashboard-agent-listen-port": free_port()}
    with tempfile.TemporaryDirectory(prefix="rondo-ray-") as short:
        command = [str(programs / "ray"), "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"]
        command += [f"--{name}={port}" for name, port in ports.items()]
        command += [f"--object-store-memory={200 << 20}", f"--temp-dir={short}", "--node-ip-address=127.0.0.1"]
        (folder / "k.yaml").write_text(KUBERAY.format(folder=folder))
        environment = {
            **{name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ},
            **head_container(folder / "k.yaml"),
            "PATH": f"{programs}:/usr/bin:/bin", "HOME": str(folder), "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "a-token-of-this-test-0123456789abcdef", "XDG_STATE_HOME": str(folder / "state"),
        }  # fmt: skip
        head = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True, cwd=short)
        dashboard = f"http://127.0.0.1:{ports['dashboard-port']}"
        made = Cluster(folder, dashboard, head, environment)
        (folder / "ray.yaml").write_text(f"kind: ray\naddress: {dashboard}\nstore: {folder / 'store'}\n")
        (folder / "sent").mkdir()
        constraints = [{"use": "mine:penalty", "options": {"broken": False}}]
        processes.long_training(folder / "sent", {"constraints": constraints, "epochs": 40})
        (folder / "sent" / "mine.py").write_text(PENALTY)
        try:
            processes.wait_for(lambda: made.rondo("check", *SENT).returncode == 0, head)  # type: ignore[arg-type]
            yield made
        finally:
            for process in [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            head.wait(30)


SENT = ("sent/spec.yaml", "--cluster", "ray.yaml")


def test_a_job_that_fails_ends_so_and_says_why_in_one_line(cluster: Cluster) -> None:
    broken = "train.constraints=[{use: 'mine:penalty', options: {broken: true}}]"
    found = cluster.rondo("submit", *SENT, "--follow", "--set", broken, "--set", "train.epochs=1")
    assert found.returncode == 1
    (job,) = cluster.jobs()
    assert found.stdout.startswith(f"{job}\n")
    (line,) = (line for line in found.stdout.splitlines() if line.startswith("failed at "))
    assert line == "failed at round-1/train: ValueError: the penalty is broken"
    assert found.stderr.splitlines()[-1] == f"job {job} failed: Job entrypoint command failed with exit code 1"
    assert cluster.jobs() == {job: "failed"}


def test_a_job_is_stopped_then_killed_and_goes_on_each_time(cluster: Cluster) -> None:
    store = cluster.folder / "store"
    first = cluster.rondo("submit", *SENT).stdout.strip()
    processes.wait_for(lambda: processes.checkpoints(store), cluster.head)  # type: ignore[arg-type]
    stopped = cluster.rondo("stop", first)
    assert (stopped.returncode, stopped.stdout) == (0, f"{first}: stopped\n"), stopped.stderr
    assert cluster.jobs()[first] == "stopped"
    assert alive(cluster) == "[]"

    before = set(processes.checkpoints(store))
    second = cluster.rondo("submit", *SENT).stdout.strip()
    processes.wait_for(lambda: set(processes.checkpoints(store)) - before, cluster.head)  # type: ignore[arg-type]
    for driver in cluster.drivers():
        driver.kill()
    ended = cluster.rondo("logs", second[:-1], "--follow")
    assert ended.returncode == 1
    assert f"job {second} failed" in ended.stderr

    third = cluster.rondo("submit", *SENT, "--follow")
    assert third.returncode == 0, third.stderr
    lines = third.stdout.splitlines()
    assert sum("committed" in line for line in lines if "/7 " in line) == 6
    assert any(line.startswith("  7/7 round-1/train ") for line in lines)
    assert "continued from step" in "".join(file.read_text() for file in store.glob("logs/*.log"))
    assert not list(store.glob("artifacts/*/*/manifest.json?*"))
    (policy,) = (Path(line.split()[1]) for line in lines if line.startswith("policy "))
    rows = [json.loads(line) for line in (policy.parent / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 241))
    assert list(cluster.jobs().values())[:3] == ["done", "failed", "stopped"]


def test_a_rayjobs_entry_point_runs_in_what_its_manifest_gives(cluster: Cluster) -> None:
    """In a folder as the kubelet makes it from the ConfigMap, by the command that KubeRay makes of the entry point."""
    short = ["--set", "train.epochs=1", "--set", "train.loss={use: simpo}"]
    shown = cluster.rondo("submit", "sent/spec.yaml", "--cluster", "k.yaml", "--dry-run", *short)
    assert shown.returncode == 0, shown.stderr
    pod = cluster.folder / "pod"
    config, job = yaml.safe_load(shown.stdout.replace("/rondo/", f"{pod}/"))["items"]
    spec = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (volume,) = (each["configMap"] for each in spec["volumes"] if each["name"] == "job")
    mounted = pod / "job"
    for item in volume["items"]:
        file = mounted / "..2026" / item["path"]
        file.parent.mkdir(parents=True, exist_ok=True)
        text, other = config["data"].get(item["key"]), config.get("binaryData", {}).get(item["key"], "")
        file.write_bytes(base64.b64decode(other) if text is None else text.encode())
    (mounted / "..data").symlink_to("..2026")
    for name in {Path(item["path"]).parts[0] for item in volume["items"]}:
        (mounted / name).symlink_to(Path("..data", name))
    where = f"--address {cluster.dashboard}"
    line = (
        f"if ! ray job status {where} it >/dev/null 2>&1 ; then ray job submit {where} --no-wait --submission-id it -- "
        f"{job['spec']['entrypoint']} ; fi ; ray job logs {where} --follow it"
    )
    environment = {name: cluster.environment[name] for name in ("PATH", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
    done = subprocess.run(
        ["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=120, check=False, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    assert " round-1/train " in done.stdout
    assert "found committed" in done.stdout


def alive(cluster: Cluster) -> str:
    """The actors of the cluster that have not ended."""
    code = "import sys; from ray.util.state import list_actors as ls; print(ls(sys.argv[1], [('state', '!=', 'DEAD')]))"
    done = subprocess.run(
        [sys.executable, "-c", code, cluster.dashboard], capture_output=True, text=True, check=True,
        env=cluster.environment,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("environment", "said"),
    [({"RAY_AUTH_TOKEN": "another-token-0123456789abcdef"}, "wants a token: Authentication failed: Forbidden: Invalid"),
     ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": ""}, "wants a token: Authentication required: ")],
)  # fmt: skip
def test_a_wrong_token_is_one_sentence(cluster: Cluster, environment: dict[str, str], said: str) -> None:
    for command in (("check", *SENT), ("submit", *SENT)):
        found = cluster.rondo(*command, **environment)
        assert found.returncode == 2
        assert said in found.stderr
        assert "Traceback" not in found.stderr
        assert "0123456789abcdef" not in found.stderr


def test_what_has_no_place_and_a_job_that_is_not_there(cluster: Cluster) -> None:
    wide = cluster.rondo("submit", *SENT, "--set", "resources.train.gpus=1", RAY_ADDRESS="127.0.0.1:1")
    assert wide.returncode == 2
    assert "resources.train: 1 workers with 1 CPUs, 1 GPUs each; there is room for 0 on nodes with: 2 C" in wide.stderr
    for command in ("logs", "stop"):
        nobody = cluster.rondo(command, "nobody", "--cluster", "ray.yaml")
        assert nobody.returncode == 2
        assert (
            nobody.stderr
            == f"nobody: the cluster at {cluster.dashboard} has no such job; rondo jobs lists those sent\n"
        )
