"""A run as a job for another cluster: what is sent, and what has to be right before."""

from __future__ import annotations

import fnmatch
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

from clusters import folder as travelling
from clusters.job import Command, JobSpec
from clusters.kinds import Cluster, launcher
from clusters.kuberay import KubeRayCluster
from clusters.local import LocalCluster
from clusters.ray_jobs import RayCluster
from clusters.ray_up import RayUpCluster
from clusters.slurm import SlurmCluster
from pipelines import plugins
from pipelines.spec import clusterfile
from pipelines.spec.asked import models
from pipelines.spec.load import Loaded
from pipelines.spec.model_path import is_local
from pipelines.spec.problems import Problem, SpecError
from stages.io import nodes

_NAME_LENGTH = 40
"""Of a job's name, so that with its random ending it is a name on every kind of cluster."""


def check_places(loaded: Loaded, file: Path, ask: bool, sweep: bool = False) -> None:
    """See that the cluster that a file describes has a place for every worker. Without ``ask`` a running one is not
    asked.

    Raises:
        SpecError: the file is wrong, or what the spec's ``resources`` ask for has no place there.
        StageError: a running cluster has to be asked, and does not answer.
    """
    cluster = clusterfile.load(file)
    if isinstance(cluster, RayCluster) and (cluster.grows or not ask):
        return  # of machines that are added on demand nobody knows before
    to = launcher(cluster, Path.cwd())
    found = list(nodes.unplaceable(loaded.spec.places(sweep), to.machines(), to.knows))
    if isinstance(cluster, KubeRayCluster | RayUpCluster) and cluster.grows:
        found += [
            (key, f"accelerator_type {each.accelerator_type}: Ray does not know the type of machines that are not "
             "there yet, and would add none; give workers labels and choose by label_selector")
            for key, each in loaded.spec.places(sweep).items() if each.accelerator_type
        ]  # fmt: skip
    if found:
        raise SpecError([Problem(f"{loaded.path.name} {key}", f"{text} ({file.name})") for key, text in found])


def job(
    loaded: Loaded, overrides: Sequence[str], cluster: Cluster, file: Path | None, command: Command = "run",
    own: Sequence[str] = (),
) -> JobSpec:  # fmt: skip
    """A command as a job, with options of its ``own`` before those that all have. Here it starts a Ray of its own,
    with the settings of the ``file`` if there is one; elsewhere it joins the one it finds."""
    name = loaded.spec.name
    wait = cluster.wait if isinstance(cluster, RayCluster | KubeRayCluster | RayUpCluster) and cluster.grows else 0
    options = [*own]
    options += [part for text in overrides for part in ("--set", text)]
    options += ["--store", cluster.store] if cluster.store else []
    if not isinstance(cluster, LocalCluster):
        options += ["--address", "auto"]
    elif file is not None:
        options += ["--cluster", str(file)]
    options += ["--wait", str(wait)] if wait else []
    bundled = not Path(loaded.argument).is_file()
    called = (name if name[0].isalpha() else f"run-{name}")[:_NAME_LENGTH].rstrip("-")
    return JobSpec(
        f"{called}-{secrets.token_hex(3)}", name, loaded.argument, tuple(options), Path.cwd(),
        None if bundled else loaded.path, command,
    )  # fmt: skip


def takes_along(cluster: Cluster) -> bool:
    """Whether the spec's folder travels with a job."""
    in_image = isinstance(cluster, KubeRayCluster) and cluster.folder is not None
    return not (in_image or isinstance(cluster, LocalCluster | SlurmCluster))


def check_travels(loaded: Loaded) -> None:
    """See that what the spec names by a relative path is among what a job takes along of the spec's folder.

    Raises:
        SpecError: with everything that is not.
        StageError: the folder cannot be taken along.
    """
    folder = loaded.path.parent
    taken = [str(file) for file in travelling.files(folder)]
    found = []
    sources = {("policy",): loaded.spec.policy, **models(loaded.spec)}
    on_hub = {(*key, "model") for key, source in sources.items() if not is_local(source)}
    for key, text in _locations(loaded):
        path = os.path.abspath(folder / text)
        if text.startswith(("/", "~")) or "://" in text or (key in on_hub and not os.path.exists(path)):
            continue
        if not any(file.startswith(f"{path}{os.sep}") or fnmatch.fnmatch(file, path) for file in taken):
            message = (
                f"{text} does not travel with the job: only the spec's folder does, without names that begin with a "
                "dot and links that lead out of it. Move it there, or put it into a bucket"
            )
            found.append(Problem(loaded.where(key), message))
    for name in plugins.travelling(plugins.module_names(loaded.spec.model_dump()), [folder, Path.cwd()]):
        if not _is_inside(name, folder):
            text = f"{name.name} stands in the current folder; put it beside the spec: that folder travels with the job"
            found.append(Problem(loaded.path.name, text))
    if found:
        raise SpecError(found)


def _is_inside(path: Path, folder: Path) -> bool:
    return Path(os.path.abspath(path)).is_relative_to(folder.absolute())


def _locations(loaded: Loaded) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """What of the spec names files or folders, each with its key."""
    spec = loaded.spec
    for index, source in enumerate(spec.preferences):
        yield ("preferences", index, "path"), source.path
    checks = spec.evaluate.checks
    named: dict[tuple[str | int, ...], str | None] = {
        ("evaluate", "checks", "prompts"): checks.prompts if checks else None,
        **{(*key, "model"): source.model for key, source in models(spec).items()},
        **{(*key, "adapter"): source.adapter for key, source in models(spec).items()},
        ("prompts", "train"): spec.prompts.train, ("prompts", "heldout"): spec.prompts.heldout,
        ("policy", "model"): spec.policy.model, ("policy", "adapter"): spec.policy.adapter,
    }  # fmt: skip
    yield from ((key, text) for key, text in named.items() if text)
