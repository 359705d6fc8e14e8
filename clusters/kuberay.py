"""What a cluster file of kind ``kuberay`` says: a Ray cluster on Kubernetes, made for one job and gone with it."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from clusters.fields import Name, Several, StorePlace, Text, grow, matching
from stages.base import Config

_SECRET_NAME = re.compile(r"(?i)(^|_)(token|secret|key|credentials?)($|_)|passw|apikey")
_SECRET_VALUE = re.compile(r"(?:hf_|sk-|ghp_|AKIA)[A-Za-z0-9_-]{16,}|//[^/\s]*:[^/\s]*@")

Path = Annotated[str, matching(r"/[^\s:]+", "an absolute path")]
Variable = Annotated[str, matching(r"[A-Za-z_][A-Za-z0-9_]*", "the name of an environment variable")]


class Toleration(Config):
    """A taint of nodes, such as that of spot machines, that pods may stand on nevertheless."""

    key: Text
    operator: Literal["Equal", "Exists"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class Group(Config):
    """Pods of one size."""

    cpus: PositiveInt = 2
    memory_gib: PositiveInt = 8
    gpus: NonNegativeInt = 0
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels of Kubernetes that the nodes have to have."""
    tolerations: tuple[Toleration, ...] = ()


class WorkerGroup(Group, Several):
    """Pods that work, in a number."""


class Volume(Config):
    """A persistent volume claim that all pods mount, which has to allow that."""

    claim: Name
    path: Path


class KubeRayCluster(Config):
    kind: Literal["kuberay"]
    image: Annotated[str, matching(r"[A-Za-z0-9][\w.:/@-]*", "an image's name")]
    """With Rondo in it, in the version of this machine (``clusters/docker``)."""
    store: StorePlace
    """A bucket, or a folder on the ``volume``."""
    namespace: Name | None = None
    context: Text | None = None
    """Of kubectl's configuration; by default its current one."""
    head: Group = Group()
    """The driver runs here; the workers too, if there are no groups of them."""
    workers: dict[Name, WorkerGroup] = Field(default_factory=dict)
    folder: Path | None = None
    """The spec's folder in the image or on the volume; by default it travels in a ConfigMap, which holds 1 MiB."""
    volume: Volume | None = None
    secrets: tuple[Name, ...] = ()
    """Secrets of Kubernetes whose entries become environment variables: a bucket's credentials, a hub's token."""
    env: dict[Variable, str] = Field(default_factory=dict)
    service_account: Name | None = None
    image_pull_secrets: tuple[Name, ...] = ()
    queue: Name | None = None
    """A LocalQueue of Kueue."""
    retries: NonNegativeInt = 2
    """How often a run that failed is started again, on a new cluster; it goes on from the last finished step."""
    keep_seconds: NonNegativeInt = 0
    """For which the Ray cluster is kept after the run, to be looked at."""
    time_limit_seconds: PositiveInt | None = None
    wait: PositiveInt = 1800
    """Seconds for which a stage waits for pods that are added on demand."""
    cache_gib: PositiveInt = 100
    """Disk of each pod for copies of what is in the bucket."""
    run_as: PositiveInt = 1000
    """The user's number in the image; not root."""
    token_auth: bool = True
    """Ray asks for a token that KubeRay makes and keeps in a Secret; KubeRay 1.5.1 or newer."""

    @property
    def grows(self) -> bool:
        return grow(self.workers.values())

    @field_validator("env")
    @classmethod
    def _no_secrets(cls, value: dict[str, str]) -> dict[str, str]:
        if named := [name for name, text in value.items() if _SECRET_NAME.search(name) or _SECRET_VALUE.search(text)]:
            raise ValueError(f"{named[0]} looks like a secret; put it into a Secret and name that under secrets")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if "headgroup" in self.workers:
            raise ValueError("headgroup is what KubeRay calls the head; give the workers another name")
        if self.queue and self.grows:
            raise ValueError("a queue of Kueue takes jobs of a fixed size: give every group of workers one number")
        if "://" not in self.store and not (self.volume and self.store.startswith(self.volume.path.rstrip("/") + "/")):
            raise ValueError(f"the store {self.store} is on no volume: use a bucket, or a folder below volume.path")
        return self
