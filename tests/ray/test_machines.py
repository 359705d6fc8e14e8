"""Two machines without a common disk: two Ray nodes, each with a cache of its own, and a store in a bucket."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from pipelines.plan import rounds
from pipelines.run.store import ArtifactStore
from pipelines.spec import load
from stages.io.artifact import Artifact
from stages.io.filenames import LOGPROBS, RECORDS
from tests import artifacts, s3, specs, tiny
from tests.ray import processes
from tests.unit.steps import runner


@dataclass
class Machines:
    address: str
    caches: Path
    """The folder with the machines' caches, ``one`` and ``two``."""
    second: subprocess.Popen[bytes]
    bucket: s3.Bucket

    def processes(self, machine: str = "") -> list[psutil.Process]:
        """Those of one of the machines, or of both."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("RONDO_CACHE", "").startswith(str(self.caches / machine)):
                    found.append(process)
        return found

    def remove(self) -> None:
        """Take the second machine away, at once."""
        for process in self.processes("two"):
            with contextlib.suppress(psutil.Error):
                process.kill()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """A cluster of two nodes with a CPU each.

    Where this user may, the second has a view of its own of the file system, in which the folders of the tests, with
    the specs and models, are not there.
    """
    tests = tmp_path_factory.getbasetemp()
    with s3.bucket() as bucket, tempfile.TemporaryDirectory(prefix="rondo-caches-") as name:
        folder = Path(name)
        head = Cluster()
        head.add_node(num_cpus=1, env_vars={"RONDO_CACHE": str(folder / "one")}, object_store_memory=200 << 20)
        host, _ = head.address.split(":")
        command = [
            str(Path(sys.executable).parent / "ray"),
            "start",
            "--address",
            head.address,
            "--num-cpus",
            "1",
            "--labels",
            "zone=far",
        ]
        command += ["--object-store-memory", str(200 << 20), "--node-ip-address", host, "--block"]
        if hidden():
            command = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {tests} && exec "$@"', "sh", *command]
        environment = {**os.environ, "RONDO_CACHE": str(folder / "two"), "RAY_USAGE_STATS_ENABLED": "0"}
        second = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, cwd="/")
        try:
            ray.init(head.address, configure_logging=False)
            deadline = time.monotonic() + 60
            while sum(node["Alive"] for node in ray.nodes()) < 2:
                assert second.poll() is None, "the second node did not start"
                assert time.monotonic() < deadline, "the second node did not come within 60 s"
                time.sleep(0.2)
            ray.shutdown()
            yield Machines(head.address, folder, second, bucket)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(second.pid, signal.SIGTERM)
            second.wait(30)
            head.shutdown()


def hidden() -> bool:
    """Whether a process may have a view of its own of the file system here."""
    return (
        shutil.which("unshare") is not None
        and not subprocess.run(
            ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /mnt"], stderr=subprocess.DEVNULL, check=False
        ).returncode
    )


def run(
    spec: Path, store: str, cluster: Machines, *options: str, what: str = "run"
) -> subprocess.CompletedProcess[str]:
    """The command as it is run on the first machine."""
    command = [
        sys.executable,
        "-m",
        "pipelines",
        what,
        str(spec),
        "--store",
        store,
        "--address",
        cluster.address,
        *options,
    ]
    command += ["--json"] if what == "run" else []
    environment = {**os.environ, "RONDO_CACHE": str(cluster.caches / "one")}
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env=environment)


def made(store: str, summary: dict[str, Any]) -> dict[str, Artifact]:
    """The artifacts of a run by their steps' keys."""
    opened = ArtifactStore(store)
    there = {manifest["fingerprint"]: manifest for manifest in opened.manifests()}
    return {step["key"]: opened.open(there[step["fingerprint"]]) for step in summary["steps"]}


JUDGE = """
import os
from measures import length  # a file next to this one
from stages.judge.protocol import Judgement

class Lengths:
    def __call__(self, rows):
        place = os.environ["RONDO_CACHE"]
        return [Judgement(row.prompt_id, r.sample, length(r.text), place) for row in rows for r in row.responses]
"""


def test_what_two_machines_make_is_what_one_makes(
    cluster: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lengths.py").write_text(JUDGE)
    (tmp_path / "measures.py").write_text("length = len\n")
    one_each = {"workers": 2, "cpus": 1}
    spec = specs.offline(
        tmp_path, tiny.save(tmp_path / "model"), 400, prompts={"train": "prompts.jsonl"},
        judge={"use": "lengths:Lengths"},
        rollout={"samples": 4, "max_tokens": 8, "max_length": 256, "engine": "transformers"},
        resources={"train": one_each, "reference": one_each, "rollout": one_each,
                   "judge": {"label_selector": {"zone": "far"}}},
        train={"batch_size": 64, "epochs": 1, "learning_rate": 1e-3, "precision": "fp32"},
    )  # fmt: skip
    specs.jsonl(tmp_path / "prompts.jsonl", specs.prompts(128))
    done = run(spec, "s3://rondo/two", cluster)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["policy"].startswith("s3://rondo/two/artifacts/")
    plan = rounds.plan(load.load(str(spec)).spec, tmp_path)
    assert [step["fingerprint"] for step in summary["steps"]] == [step.fingerprint for step in plan.steps]
    monkeypatch.setenv("RONDO_CACHE", str(tmp_path / "looking"))
    there = made("s3://rondo/two", summary)
    alone, _ = runner(ArtifactStore(str(tmp_path / "store")))
    *_, encoded = alone.run([step for step in plan.steps if step.key.startswith(("base", "preferences/pairs.jsonl"))])
    assert artifacts.rows(there[encoded.step.key], "tokens.arrow") == artifacts.rows(encoded.artifact, "tokens.arrow")
    prompts = [row["prompt_id"] for row in artifacts.rows(there["round-1/rollout"], RECORDS)]
    assert prompts == [row["prompt_id"] for row in artifacts.rows(there["prompts"], RECORDS) for _ in range(4)]
    assert len(artifacts.rows(there["round-1/reference"], LOGPROBS)) > 400
    caches = {str(cluster.caches / name) for name in ("one", "two")}
    assert {row["reason"] for row in artifacts.rows(there["round-1/judge"], RECORDS)} == {str(cluster.caches / "two")}
    for name in caches:
        assert list(Path(name).glob("*/artifacts/*/*/*/model/model.safetensors"))
        assert not list(Path(name).glob("*/work/*/*/parts/*"))


def test_what_a_cluster_cannot_do_is_said_before_anything_is_run(cluster: Machines, tmp_path: Path) -> None:
    spec = specs.offline(tmp_path, tiny.save(tmp_path / "model"))
    wide = ["--set", "resources.train.workers=3", "--set", "resources.encode.memory_gib=100000"]
    good, bad = (run(spec, "s3://rondo/wide", cluster, *options, what="check") for options in ([], wide))
    assert good.returncode == 0, good.stderr
    assert bad.returncode == 2
    assert "resources.train: 3 workers with 1 CPUs each; there is room for 2" in bad.stderr
    assert "resources.encode: 1 workers with 1 CPUs, 100000 GiB each; there is room for 0" in bad.stderr
    assert "Traceback" not in bad.stderr
    assert not ArtifactStore("s3://rondo/wide").runs()


def test_a_run_goes_on_after_ctrl_c_and_when_a_machine_is_taken_away(
    cluster: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both in the middle of answering prompts. The last test: the machine does not come back."""
    (tmp_path / "lengths.py").write_text(JUDGE)
    (tmp_path / "measures.py").write_text("length = len\n")
    monkeypatch.setenv("RONDO_CACHE", str(cluster.caches / "one"))
    spec = specs.offline(
        tmp_path, tiny.save(tmp_path / "model"), prompts={"train": "prompts.jsonl"}, judge={"use": "lengths:Lengths"},
        rollout={"samples": 4, "max_tokens": 32, "max_length": 256, "engine": "transformers"},
        resources={"rollout": {"workers": 2, "cpus": 1}},
    )  # fmt: skip
    specs.jsonl(tmp_path / "prompts.jsonl", specs.prompts(384))
    store = ArtifactStore("s3://rondo/gone")
    before: set[str] = set()

    def finished() -> list[str]:
        return [key for key in cluster.bucket.keys("gone/work/") if "/parts/" in key]

    def begin(least: int) -> subprocess.Popen[str]:
        process = processes.start(spec, "s3://rondo/gone", "--address", cluster.address)
        processes.wait_for(lambda: len(finished()) > least, process)
        before.update(json.loads(store.store.read(key.removeprefix("gone/")) or b"")["place"] for key in finished())
        return process

    def working() -> list[psutil.Process]:
        return [each for each in cluster.processes() if each.name().startswith(("ray::MapWorker", "ray::Board"))]

    process = begin(2)
    assert working()
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert not working()
    process = begin(len(finished()) + 3)
    cluster.remove()
    found = made("s3://rondo/gone", processes.summary_of(process))
    assert before <= {part.place for part in found["round-1/rollout"].parts}
    prompts = [row["prompt_id"] for row in artifacts.rows(found["round-1/rollout"], RECORDS)]
    assert prompts == [row["prompt_id"] for row in artifacts.rows(found["prompts"], RECORDS) for _ in range(4)]
