"""Two machines without a common disk: two Ray nodes, each with a cache of its own, and a store in a bucket."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster
from safetensors.torch import load_file

from pipelines.run.store import ArtifactStore
from stages.io.artifact import Artifact
from stages.io.filenames import LOGPROBS
from tests import artifacts, s3, specs, tiny
from tests.ray import processes


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a cluster of two nodes with a CPU each, and the folder with their caches."""
    folder = tmp_path_factory.mktemp("machines")
    with s3.bucket():
        cluster = Cluster()
        for name in ("one", "two"):
            cluster.add_node(num_cpus=1, env_vars={"RONDO_CACHE": str(folder / name)}, object_store_memory=200 << 20)
        cluster.wait_for_nodes()
        try:
            yield cluster.address, folder
        finally:
            cluster.shutdown()


def run(
    spec: Path, store: str, cluster: tuple[str, Path], *options: str, what: str = "run"
) -> subprocess.CompletedProcess[str]:
    """The command as it is run on the first machine."""
    command = [sys.executable, "-m", "pipelines", what, str(spec), "--store", store, "--address", cluster[0], *options]
    command += ["--json"] if what == "run" else []
    environment = {**os.environ, "RONDO_CACHE": str(cluster[1] / "one")}
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env=environment)


def made(store: str, summary: dict[str, Any]) -> dict[str, Artifact]:
    """The artifacts of a run by their steps' keys."""
    opened = ArtifactStore(store)
    there = {manifest["fingerprint"]: manifest for manifest in opened.manifests()}
    return {step["key"]: opened.open(there[step["fingerprint"]]) for step in summary["steps"]}


def test_what_two_machines_make_is_what_one_makes(
    cluster: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_each = {"workers": 2, "cpus": 1}
    resources = {"train": {**one_each, "checkpoint_every": 5}, "reference": one_each}
    spec = specs.offline(tmp_path, tiny.save(tmp_path / "model"), 600, resources=resources,
                         train={"batch_size": 64, "epochs": 1, "learning_rate": 1e-3, "precision": "fp32"})  # fmt: skip
    done = run(spec, "s3://rondo/two", cluster)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["policy"].startswith("s3://rondo/two/artifacts/")
    alone = processes.run(spec, tmp_path / "store", "--set", "resources.train.workers=1")
    assert [step["fingerprint"] for step in summary["steps"]] == [step["fingerprint"] for step in alone["steps"]]
    monkeypatch.setenv("RONDO_CACHE", str(tmp_path / "looking"))
    there, here = made("s3://rondo/two", summary), made(str(tmp_path / "store"), alone)
    for key, file in (("round-1/prepare", "pairs.arrow"), ("preferences/pairs.jsonl/encode", "tokens.arrow")):
        assert artifacts.rows(there[key], file) == artifacts.rows(here[key], file)
    assert artifacts.rows(there["round-1/reference"], LOGPROBS) == artifacts.rows(here["round-1/reference"], LOGPROBS)
    weights = [load_file(found["round-1/train"].path("model/model.safetensors")) for found in (there, here)]
    assert all((weights[1][name] - tensor).abs().max() < 1e-4 for name, tensor in weights[0].items())
    for name in ("one", "two"):
        assert list((cluster[1] / name).glob("*/artifacts/*/*/*/model/model.safetensors"))
        assert not list((cluster[1] / name).glob("*/work/*/*/parts/*"))


def test_what_a_cluster_cannot_do_is_said_before_anything_is_run(cluster: tuple[str, Path], tmp_path: Path) -> None:
    spec = specs.offline(tmp_path, tiny.save(tmp_path / "model"))
    wide = ["--set", "resources.train.workers=3", "--set", "resources.encode.memory_gib=100000"]
    good, bad = (run(spec, "s3://rondo/wide", cluster, *options, what="check") for options in ([], wide))
    assert good.returncode == 0, good.stderr
    assert bad.returncode == 2
    assert "resources.train: 3 workers with 1 CPUs each; there is room for 2" in bad.stderr
    assert "resources.encode: 1 workers with 1 CPUs, 100000 GiB each; there is room for 0" in bad.stderr
    assert "Traceback" not in bad.stderr
    assert not ArtifactStore("s3://rondo/wide").runs()
