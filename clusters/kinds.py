"""The kinds of cluster that a job can be sent to."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from clusters import kubectl
from clusters.background import Background
from clusters.job import JobSpec, JobStatus
from clusters.kubectl import Kubectl
from clusters.kuberay import KubeRayCluster
from clusters.local import LocalCluster
from clusters.ray_jobs import RayCluster, RayJobs
from clusters.ray_up import RayUp, RayUpCluster
from clusters.slurm import Slurm, SlurmCluster
from stages.io.nodes import Node

Cluster = LocalCluster | RayCluster | SlurmCluster | KubeRayCluster | RayUpCluster
KINDS: dict[str, type[Cluster]] = {
    "local": LocalCluster,
    "ray": RayCluster,
    "ray-up": RayUpCluster,
    "slurm": SlurmCluster,
    "kuberay": KubeRayCluster,
}


class Launcher(Protocol):
    """How jobs reach one kind of cluster. Every method may raise ``StageError``: it does not answer, or refuses."""

    knows: frozenset[str]
    """What ``machines`` says of them besides CPUs, GPUs and memory (``stages.io.nodes.unplaceable``)."""

    def machines(self) -> list[Node]:
        """What a job's workers can be placed on."""

    def show(self, job: JobSpec) -> str:
        """What ``submit`` would send, as text. Sends nothing."""

    def submit(self, job: JobSpec) -> str:
        """Send a job; returns the name that the other methods know it by."""

    def status(self, job: str) -> JobStatus: ...

    def logs(self, job: str) -> str:
        """All that the driver has printed so far."""

    def stop(self, job: str) -> None:
        """Ask for a job's end; it may take a while to come."""


def pinned(cluster: Cluster) -> Cluster:
    """The settings with what they leave to this shell, so that they mean the same later, and elsewhere."""
    return kubectl.pinned(cluster) if isinstance(cluster, KubeRayCluster) else cluster


def launcher(cluster: Cluster, folder: Path) -> Launcher:
    """The launcher for a cluster, for jobs that were or will be submitted in ``folder``."""
    if isinstance(cluster, SlurmCluster):
        return Slurm(cluster, folder)
    if isinstance(cluster, RayCluster):
        return RayJobs(cluster)
    if isinstance(cluster, RayUpCluster):
        return RayUp(cluster)
    if isinstance(cluster, KubeRayCluster):
        return Kubectl(cluster)
    return Background(cluster)
