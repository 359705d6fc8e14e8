"""Machines of a cloud by ``ray up``: the file that it is given, and what is said when it cannot be."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import fillout_defaults, validate_config

import clusters
from clusters import ray_up
from clusters.job import JobSpec
from clusters.ray_up import RayUp, RayUpCluster, launcher_config
from stages.base import StageError
from tests.unit import workspace
from tests.unit.test_cli import rondo

AWS: dict[str, Any] = yaml.safe_load((Path(clusters.__file__).parent / "ray-up.yaml").read_text())
GCP = {
    **AWS, "provider": "gcp", "region": "us-central1", "zone": "us-central1-a", "project": "ours",
    "image": "projects/p/global/images/i", "instance_profile": "robot@ours.iam.gserviceaccount.com",
    "workers": {"gpu": {"instance": "g2-standard-24", "cpus": 24, "gpus": 2, "gpu_type": "nvidia-l4", "spot": True,
                        "workers": [1, 3]}},
}  # fmt: skip


def made(settings: dict[str, Any]) -> dict[str, Any]:
    return launcher_config(RayUpCluster.model_validate(settings))


def job() -> JobSpec:
    return JobSpec("tiny-0a1b2c", "tiny", "spec.yaml", ("--address", "auto"), Path("/work"), Path("/work/spec.yaml"))


@pytest.mark.parametrize("settings", [AWS, GCP])
def test_ray_takes_the_file(settings: dict[str, Any]) -> None:
    full = fillout_defaults(copy.deepcopy(made(settings)))
    validate_config(full)
    with pytest.raises(Exception, match="worker"):
        validate_config({**full, "worker": {}})  # it does look


def test_machines_are_asked_for_in_the_words_of_their_cloud() -> None:
    aws = made(AWS)["available_node_types"]["gpu"]
    assert (aws["min_workers"], aws["max_workers"], aws["resources"]) == (0, 4, {"CPU": 48, "GPU": 4})
    assert aws["node_config"]["InstanceType"] == "g6.12xlarge"
    assert aws["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert aws["node_config"]["IamInstanceProfile"]["Arn"].endswith("instance-profile/rondo")
    gcp = made(GCP)
    assert gcp["provider"]["project_id"] == "ours"
    assert gcp["provider"]["availability_zone"] == "us-central1-a"
    node = gcp["available_node_types"]["gpu"]["node_config"]
    assert node["guestAccelerators"] == [
        {"acceleratorType": "projects/ours/zones/us-central1-a/acceleratorTypes/nvidia-l4", "acceleratorCount": 2}
    ]
    assert node["scheduling"] == [{"onHostMaintenance": "TERMINATE"}, {"preemptible": True}]
    assert node["serviceAccounts"][0]["email"] == "robot@ours.iam.gserviceaccount.com"
    # The head keeps the rights that Ray gives it to start machines.
    assert "IamInstanceProfile" not in made(AWS)["available_node_types"]["head"]["node_config"]


def test_nothing_listens_for_others_and_a_token_is_asked_for() -> None:
    config = made(AWS)
    (start,) = (line for line in config["head_start_ray_commands"] if "ray start" in line)
    assert "--dashboard-host=127.0.0.1" in start
    for line in (start, config["worker_start_ray_commands"][1]):
        assert "RAY_AUTH_MODE=token ray start" in line
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}


def test_a_dry_run_prints_the_file_and_what_is_asked_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    workspace.spec(workspace.make(tmp_path))
    (tmp_path / "up.yaml").write_text(yaml.safe_dump(AWS))
    printed = rondo("submit", "spec.yaml", "--cluster", "up.yaml", "--dry-run")
    assert printed.exit_code == 0, printed.output
    assert yaml.safe_load(printed.stdout) == made(AWS)
    assert "# entrypoint: rondo run ./spec.yaml --store s3://bucket/rondo --address auto --wait 1800" in printed.stdout
    many = rondo("check", "spec.yaml", "--cluster", "up.yaml", "--set", "resources.train.gpus=5")
    assert "there is room for 0 on nodes with: 48 CPUs, 4 GPUs" in many.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [({"workers": {"head": {"instance": "x", "cpus": 1}}}, "head is what the head is called"),
     ({"workers": {"cpu": {"instance": "x", "cpus": 1, "workers": [4, 1]}}}, "fewest, most"),
     ({"zone": None}, "GCP needs a zone and a project"), ({"store": "/shared"}, "store"),
     ({"workers": {"gpu": {"instance": "x", "cpus": 1, "gpus": 1}}}, "gpu_type"), ({"name": "A b"}, "name")],
)  # fmt: skip
def test_mistakes_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RayUpCluster.model_validate({**GCP, **change})


def test_without_a_token_or_machines_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to = RayUp(RayUpCluster.model_validate(AWS))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with pytest.raises(StageError, match="ray get-auth-token --generate"):
        to.submit(job())
    with pytest.raises(StageError, match="was not brought up from here"):
        to.status("tiny-0a1b2c")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("a-token-0123456789")
    program = "import sys; print('no credentials', file=sys.stderr); sys.exit(sys.argv[1] == sys.argv[2])"
    monkeypatch.setattr(ray_up, "_ray", lambda *words: [sys.executable, "-c", program, "up", *words])
    with pytest.raises(StageError, match=r"ray up failed, see above; its file is .*rondo\.yaml"):
        to.submit(job())
    with pytest.raises(StageError, match="no tunnel to the head of rondo: no credentials"):
        to.status("tiny-0a1b2c")
    assert "a-token-0123456789" not in next(tmp_path.rglob("rondo.yaml")).read_text()
