"""The kinds of cluster that a job can be sent to."""

from __future__ import annotations

from typing import Protocol

from clusters.job import JobSpec
from clusters.slurm import Slurm, SlurmCluster

Cluster = SlurmCluster
KINDS: dict[str, type[Cluster]] = {"slurm": SlurmCluster}


class Launcher(Protocol):
    """How jobs reach one kind of cluster."""

    def show(self, job: JobSpec) -> str: ...
    def submit(self, job: JobSpec) -> str: ...


def launcher(cluster: Cluster) -> Launcher:
    return Slurm(cluster)
