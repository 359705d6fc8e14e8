"""A run as a job for another cluster: what is sent, and what has to be right before."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

from clusters.job import JobSpec
from clusters.kinds import Cluster, launcher
from clusters.kuberay import KubeRayCluster
from clusters.local import LocalCluster
from clusters.ray_jobs import RayCluster
from clusters.slurm import SlurmCluster
from pipelines import plugins
from pipelines.spec import clusterfile
from pipelines.spec.load import Loaded, recipes
from pipelines.spec.problems import Problem, SpecError
from stages.base import Resources
from stages.io import nodes

_NAME_LENGTH = 40
"""Of a job's name, so that with its random ending it is a name on every kind of cluster."""


def check_places(loaded: Loaded, file: Path, ask: bool) -> None:
    """See that the cluster that a file describes has a place for every worker. Without ``ask`` a running one is not
    asked.

    Raises:
        SpecError: the file is wrong, or what the spec's ``resources`` ask for has no place there.
        StageError: a running cluster has to be asked, and does not answer.
    """
    cluster = clusterfile.load(file)
    if isinstance(cluster, RayCluster) and (cluster.wait or not ask):
        return  # of machines that are added on demand nobody knows before
    to = launcher(cluster, Path.cwd())
    wanted = {key: each if to.knows_all else _known(each) for key, each in dict(loaded.spec.resources).items()}
    if found := list(nodes.unplaceable(wanted, to.machines())):
        where = f"{loaded.path.name} resources"
        raise SpecError([Problem(f"{where}.{key}", f"{text} ({file.name})") for key, text in found])


def _known(wanted: Resources) -> Resources:
    """Without what a cluster file does not say: the GPUs' type and the machines' labels."""
    return wanted.model_copy(update={"accelerator_type": None, "label_selector": {}})


def job(loaded: Loaded, overrides: Sequence[str], cluster: Cluster, file: Path) -> JobSpec:
    """The run as a job. On this machine it starts a Ray of its own, elsewhere it joins the one it finds."""
    name = loaded.spec.name
    wait = getattr(cluster, "wait", 0) if getattr(cluster, "autoscaling", True) else 0
    options = [part for text in overrides for part in ("--set", text)]
    options += ["--store", cluster.store] if cluster.store else []
    options += ["--cluster", str(file)] if isinstance(cluster, LocalCluster) else ["--address", "auto"]
    options += ["--wait", str(wait)] if wait else []
    bundled = loaded.path in recipes().values()
    called = (name if name[0].isalpha() else f"run-{name}")[:_NAME_LENGTH].rstrip("-")
    return JobSpec(
        f"{called}-{secrets.token_hex(3)}", name, loaded.argument, tuple(options), Path.cwd(),
        None if bundled else loaded.path.parent,
    )  # fmt: skip


def takes_along(cluster: Cluster) -> bool:
    """Whether the spec's folder travels with a job."""
    in_image = isinstance(cluster, KubeRayCluster) and cluster.folder is not None
    return not (in_image or isinstance(cluster, LocalCluster | SlurmCluster))


def check_travels(loaded: Loaded) -> None:
    """See that what the spec names by a relative path stands in its folder, which is what a job takes along.

    Raises:
        SpecError: with everything that does not.
    """
    folder = loaded.path.parent
    outside = [
        Problem(loaded.where(key), f"{text} is outside of the spec's folder, which is all that travels with the job; "
                "move it there, or name it by its full path if the cluster's machines have it there")
        for key, text in _locations(loaded)
        if not text.startswith(("/", "~")) and "://" not in text and not _is_inside(folder / text, folder)
    ]  # fmt: skip
    for name in plugins.travelling(plugins.module_names(loaded.spec.model_dump()), [folder, Path.cwd()]):
        if not _is_inside(name, folder):
            text = f"{name.name} stands in the current folder; put it beside the spec: that folder travels with the job"
            outside.append(Problem(loaded.path.name, text))
    if outside:
        raise SpecError(outside)


def _is_inside(path: Path, folder: Path) -> bool:
    return Path(os.path.abspath(path)).is_relative_to(folder.absolute())


def _locations(loaded: Loaded) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """What of the spec names files or folders, each with its key."""
    spec = loaded.spec
    for index, source in enumerate(spec.preferences):
        yield ("preferences", index, "path"), source.path
    named = {
        ("prompts", "train"): spec.prompts.train, ("prompts", "heldout"): spec.prompts.heldout,
        ("policy", "model"): spec.policy.model, ("policy", "adapter"): spec.policy.adapter,
    }  # fmt: skip
    yield from ((key, text) for key, text in named.items() if text)
