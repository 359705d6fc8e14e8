"""Machines of a cloud, brought up by Ray's cluster launcher (``ray up``); jobs go to the job server of their head."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import NonNegativeInt, PositiveInt, model_validator

from clusters.fields import Name, Several, StorePlace, Text, grow, matching
from clusters.job import JobSpec, JobStatus, known_jobs
from clusters.ray_jobs import RayCluster, RayJobs, body
from stages.base import Config, StageError
from stages.io import nodes
from stages.io.nodes import Node

_SECONDS = 60.0
"""For which the tunnel to the head may take."""
_TOKEN = "~/.ray/auth_token"  # noqa: S105


class Machine(Config):
    """Machines of one kind."""

    instance: Text
    """The cloud's name of it, such as ``g6.12xlarge`` or ``a2-highgpu-1g``."""
    disk_gib: PositiveInt = 200


class Workers(Machine, Several):
    cpus: PositiveInt
    gpus: NonNegativeInt = 0
    gpu_type: Text | None = None
    """GCP: what is attached, such as ``nvidia-l4``."""
    spot: bool = False


class RayUpCluster(Config):
    kind: Literal["ray-up"]
    name: Name
    provider: Literal["aws", "gcp"]
    region: Text
    zone: Text | None = None
    """GCP: required; AWS: one, or several with commas between."""
    project: Text | None = None
    """GCP: the project's id."""
    store: Annotated[StorePlace, matching(r"[a-z0-9]+://.+", "a bucket such as s3://bucket/prefix")]
    image: Text
    """The machines' image: an AMI's id, or the path of an image of GCP."""
    ssh_user: Text = "ubuntu"
    setup: tuple[str, ...] = ()
    """Lines of shell, run on every machine, that make ``rondo`` and ``ray`` available."""
    instance_profile: Text | None = None
    """Lets the workers use the bucket. AWS: the ARN of an instance profile; GCP: the address of a service account. The
    head has the one that ``ray up`` makes for it, with which it starts the others."""
    head: Machine
    workers: dict[Name, Workers]
    idle_minutes: PositiveInt = 10
    """After which a machine without work is given back. The head stays until ``ray down``."""
    wait: PositiveInt = 1800
    """Seconds for which a stage waits for machines."""

    @property
    def grows(self) -> bool:
        return grow(self.workers.values())

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if "head" in self.workers:
            raise ValueError("head is what the head is called; give the workers another name")
        if self.provider == "gcp" and not (self.zone and self.project):
            raise ValueError("GCP needs a zone and a project")
        if self.provider == "gcp" and any(kind.gpus and not kind.gpu_type for kind in self.workers.values()):
            raise ValueError("GCP needs the gpu_type of workers with gpus")
        return self


def launcher_config(cluster: RayUpCluster) -> dict[str, Any]:
    """The file that ``ray up`` takes. Ray's token is copied to the machines from this user's own file; nothing listens
    for other networks than the machines' own."""
    start = "ulimit -n 65536; RAY_AUTH_MODE=token ray start"
    kinds: dict[str, Any] = {
        "head": {"resources": {"CPU": 0}, "node_config": _machine(cluster, cluster.head), "max_workers": 0}
    }
    for name, kind in cluster.workers.items():
        fewest, most = kind.range
        has = {"CPU": kind.cpus, **({"GPU": kind.gpus} if kind.gpus else {})}
        kinds[name] = {
            "resources": has, "node_config": _machine(cluster, kind), "min_workers": fewest, "max_workers": most,
            **({"labels": dict(kind.labels)} if kind.labels else {}),
        }  # fmt: skip
    return {
        "cluster_name": cluster.name,
        "max_workers": sum(kind.range[1] for kind in cluster.workers.values()),
        "idle_timeout_minutes": cluster.idle_minutes,
        "provider": _provider(cluster),
        "auth": {"ssh_user": cluster.ssh_user},
        "available_node_types": kinds,
        "head_node_type": "head",
        "file_mounts": {_TOKEN: _TOKEN},
        "setup_commands": list(cluster.setup),
        "head_start_ray_commands": [
            "ray stop",
            f"{start} --head --port=6379 --dashboard-host=127.0.0.1 --autoscaling-config=~/ray_bootstrap_config.yaml",
        ],
        "worker_start_ray_commands": ["ray stop", f"{start} --address=$RAY_HEAD_IP:6379"],
    }


def _provider(cluster: RayUpCluster) -> dict[str, Any]:
    place = {"type": cluster.provider, "region": cluster.region, "cache_stopped_nodes": False}
    optional = {"availability_zone": cluster.zone, "project_id": cluster.project if cluster.provider == "gcp" else None}
    return place | {name: value for name, value in optional.items() if value}


def _machine(cluster: RayUpCluster, kind: Machine) -> dict[str, Any]:
    """A machine in its cloud's own words."""
    spot = isinstance(kind, Workers) and kind.spot
    profile = cluster.instance_profile if isinstance(kind, Workers) else None
    if cluster.provider == "aws":
        disk = {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": kind.disk_gib, "VolumeType": "gp3"}}
        found: dict[str, Any] = {
            "InstanceType": kind.instance, "ImageId": cluster.image, "BlockDeviceMappings": [disk],
        }  # fmt: skip
        if profile:
            found["IamInstanceProfile"] = {"Arn": profile}
        return found | ({"InstanceMarketOptions": {"MarketType": "spot"}} if spot else {})
    boot = {"diskSizeGb": kind.disk_gib, "sourceImage": cluster.image}
    found = {
        "machineType": kind.instance,
        "disks": [{"boot": True, "autoDelete": True, "type": "PERSISTENT", "initializeParams": boot}],
    }
    if profile:
        scope = "https://www.googleapis.com/auth/cloud-platform"
        found["serviceAccounts"] = [{"email": profile, "scopes": [scope]}]
    if isinstance(kind, Workers) and kind.gpus:
        where = f"projects/{cluster.project}/zones/{cluster.zone}/acceleratorTypes/{kind.gpu_type}"
        found["guestAccelerators"] = [{"acceleratorType": where, "acceleratorCount": kind.gpus}]
        found["scheduling"] = [{"onHostMaintenance": "TERMINATE"}]
    if spot:
        found["scheduling"] = [*found.get("scheduling", []), {"preemptible": True}]
    return found


class RayUp:
    """Brings the machines up if they are not, and talks to their head's job server through a tunnel of ssh, which is
    closed when this process ends."""

    knows = frozenset({nodes.LABELS})

    def __init__(self, cluster: RayUpCluster) -> None:
        self._cluster = cluster

    def machines(self) -> list[Node]:
        """All that there may be."""
        return [
            Node(name, {"CPU": kind.cpus, "GPU": kind.gpus}, kind.labels)
            for name, kind in self._cluster.workers.items()
            for _ in range(kind.range[1])
        ]

    def show(self, job: JobSpec) -> str:
        """The launcher's file; what is then asked of the head stands behind it as a comment."""
        then = yaml.safe_dump({"POST": "/api/jobs/", **body(job)}, sort_keys=False, width=1000)
        comments = "".join(f"# {line}\n" for line in then.splitlines())
        return yaml.safe_dump(launcher_config(self._cluster), sort_keys=False, width=120) + comments

    def submit(self, job: JobSpec) -> str:
        token = Path(_TOKEN).expanduser()
        if os.environ.get("RAY_AUTH_MODE") != "token" or not token.is_file():
            raise StageError(
                f"the cluster's token is {_TOKEN} of this machine: make one with `ray get-auth-token --generate`, and "
                "set RAY_AUTH_MODE=token in this shell"
            )
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(yaml.safe_dump(launcher_config(self._cluster), sort_keys=False), encoding="utf-8")
        # Ray is not restarted: there may be jobs.
        done = subprocess.run(_ray("up", "--yes", "--no-restart", str(self._file)), stdout=sys.stderr, check=False)
        if done.returncode:
            raise StageError(f"ray up failed, see above; its file is {self._file}")
        return self._head.submit(job)

    def status(self, job: str) -> JobStatus:
        return self._head.status(job)

    def logs(self, job: str) -> str:
        return self._head.logs(job)

    def stop(self, job: str) -> None:
        self._head.stop(job)

    @property
    def _file(self) -> Path:
        return known_jobs() / "ray-up" / f"{self._cluster.name}.yaml"

    @functools.cached_property
    def _head(self) -> RayJobs:
        """The head's job server, at this end of the tunnel."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        if not self._file.exists():
            raise StageError(f"the cluster {self._cluster.name} was not brought up from here")
        tunnel = subprocess.Popen(
            _ray("dashboard", "--port", str(port), str(self._file)), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        atexit.register(_end, tunnel)
        until = time.monotonic() + _SECONDS
        while tunnel.poll() is None and time.monotonic() < until:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return RayJobs(RayCluster(kind="ray", address=f"http://127.0.0.1:{port}", store=self._cluster.store))
            time.sleep(0.3)
        said = (tunnel.stderr.read() if tunnel.stderr and tunnel.poll() is not None else "").strip().splitlines()
        raise StageError(
            f"no tunnel to the head of {self._cluster.name}: {said[-1] if said else 'ssh does not answer'}"
        )


def _ray(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).parent / "ray"), *arguments]


def _end(tunnel: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(tunnel.pid, 15)
