"""``rondo submit``: the same run, on another cluster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clusters.job import JobSpec
from clusters.kinds import Cluster
from pipelines.spec import clusterfile
from pipelines.spec.load import Loaded
from pipelines.spec.problems import Problem, SpecError
from stages.base import Resources
from stages.io import nodes


def check_places(loaded: Loaded, file: Path) -> None:
    """See that the cluster that a file describes has a place for every worker.

    Raises:
        SpecError: the file is wrong, or what the spec's ``resources`` ask for has no place there.
    """
    machines = clusterfile.load(file).machines()
    wanted = {name: _known(each) for name, each in dict(loaded.spec.resources).items()}
    found = list(nodes.unplaceable(wanted, machines))
    if found:
        where = f"{loaded.path.name} resources"
        raise SpecError([Problem(f"{where}.{name}", f"{text} ({file.name})") for name, text in found])


def _known(wanted: Resources) -> Resources:
    """Without what a cluster file does not say: the GPUs' type and the machines' labels."""
    return wanted.model_copy(update={"accelerator_type": None, "label_selector": {}})


def job(loaded: Loaded, overrides: Sequence[str], cluster: Cluster) -> JobSpec:
    """The run as a job: on the cluster it joins the Ray that is started for it, or that it is sent to."""
    given = [part for text in overrides for part in ("--set", text)]
    command = ("rondo", "run", loaded.argument, *given, "--store", cluster.store, "--address", "auto")
    return JobSpec(loaded.spec.name, command, Path.cwd())
