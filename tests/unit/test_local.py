"""This machine as a cluster: what it has, and what a spec may not ask of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from clusters import local
from clusters.cpus import usable_cpus
from clusters.local import LocalCluster, default, unplaceable
from stages.base import Resources, TrainResources

FOUR = LocalCluster(kind="local", cpus=4)


def faults(**resources: Resources) -> dict[str, str]:
    return dict(unplaceable(resources, FOUR))


def test_the_settings_that_come_with_it_are_valid() -> None:
    assert default().kind == "local"
    assert default().total_cpus == usable_cpus() >= 1


def test_the_number_of_cores_can_be_given() -> None:
    assert FOUR.total_cpus == 4
    with pytest.raises(ValidationError, match="cpus"):
        LocalCluster(kind="local", cpus=0)


def test_what_fits_is_no_fault() -> None:
    assert faults() == {}
    assert faults(train=TrainResources(workers=4), rollout=Resources(workers=2, cpus=2), reference=Resources()) == {}


def test_more_cores_than_there_are_is_a_fault_at_its_key() -> None:
    found = faults(train=TrainResources(workers=3, cpus=2), rollout=Resources(cpus=5), reference=Resources(workers=5))
    assert set(found) == {"train", "rollout", "reference"}
    assert "3 workers with 2 CPUs each; there is room for 2 on nodes with: 4 CPUs" in found["train"]


def test_of_a_range_of_workers_the_fewest_have_to_fit() -> None:
    assert faults(train=TrainResources(workers=(2, 9), cpus=2)) == {}
    found = faults(train=TrainResources(workers=(3, 9), cpus=2))
    assert "3 workers with 2 CPUs each; there is room for 2" in found["train"]


def test_more_gpus_than_any_machine_has_is_a_fault() -> None:
    found = faults(train=TrainResources(workers=2, gpus=500))
    assert set(found) == {"train"}
    assert "2 workers with 1 CPUs, 500 GPUs each; there is room for 0" in found["train"]


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [(None, 3), ("0", 1), ("0,1,2,3", 3), ("GPU-1,GPU-2", 2), ("", 0), ("-1", 0), ("NoDevFiles", 0)],
)
def test_gpus_that_are_hidden_do_not_count(
    visible: str | None, gpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert local._gpus(tmp_path) == gpus


def test_a_gpu_where_there_is_none_is_a_fault_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_gpus", lambda _: 0)
    found = faults(train=TrainResources(gpus=1))["train"]
    assert found.endswith("4 CPUs, 0 GPUs. There is no GPU: leave gpus out, or run where there is one")
    monkeypatch.setattr(local, "_gpus", lambda _: 1)
    assert faults(train=TrainResources(gpus=1)) == {}
    assert "There is no GPU" not in faults(train=TrainResources(gpus=2))["train"]


def test_labels_that_only_a_cluster_has_are_a_fault_here_memory_and_types_are_left_to_ray() -> None:
    assert set(faults(judge=Resources(label_selector={"zone": "a"}))) == {"judge"}
    assert faults(judge=Resources(memory_gib=1e6, accelerator_type="H100")) == {}
    assert faults(judge=Resources(label_selector={"ray.io/accelerator-type": "H100"})) == {}


_UNDER_UV = """
import ray  # as the module of a user's judge may
from ray._private.worker import _maybe_modify_runtime_env
from clusters import local
ray.init = lambda **options: print(sorted(_maybe_modify_runtime_env(options.get("runtime_env"), False) or []))
local.start(local.default())
"""


@pytest.mark.parametrize(("setting", "packed"), [({}, []), ({"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "1"}, ["working_dir"])])
def test_under_uv_run_ray_packs_nothing_unless_told_to(
    setting: dict[str, str], packed: list[str], tmp_path: Path
) -> None:
    """A shell that calls itself ``uv`` and runs a script named ``run`` is what Ray looks for among its parents."""
    (tmp_path / "driver.py").write_text(_UNDER_UV)
    (tmp_path / "run").write_text(f'"{sys.executable}" driver.py\nexit $?\n')
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ENABLE_UV_RUN_RUNTIME_ENV"}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), **setting}
    done = subprocess.run(
        ["uv", "run"], executable="/bin/sh", cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(["py_executable", *packed] if packed else [])
