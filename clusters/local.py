"""Ray on this machine, for as long as a run lasts."""

from __future__ import annotations

import importlib.resources
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import yaml
from pydantic import PositiveInt

from clusters.cpus import usable_cpus
from stages.base import Config, Resources
from stages.io import nodes

_PACK_UNDER_UV = "RAY_ENABLE_UV_RUN_RUNTIME_ENV"


class LocalCluster(Config):
    kind: Literal["local"]
    cpus: PositiveInt | None = None
    object_store_mib: PositiveInt = 512
    store: str | None = None
    """Where results are kept, for jobs; by default ``.rondo`` in the folder where they are submitted."""

    @property
    def total_cpus(self) -> int:
        """The CPUs that Ray may hand out: those of the settings, else those that this process may use."""
        return self.cpus or usable_cpus()


def default() -> LocalCluster:
    """The settings in ``clusters/local.yaml``."""
    text = importlib.resources.files("clusters").joinpath("local.yaml").read_text(encoding="utf-8")
    return LocalCluster.model_validate(yaml.safe_load(text))


KNOWS = frozenset({nodes.LABELS})
"""Of this machine, before Ray looks at it: it gets no labels but Ray's own."""


def machine(cluster: LocalCluster) -> nodes.Node:
    """What of this machine Ray may hand out."""
    return nodes.Node("this machine", {"CPU": cluster.total_cpus, "GPU": _gpus(Path("/dev"))})


def _gpus(devices: Path) -> int:
    """The GPUs that the driver shows, without those that CUDA_VISIBLE_DEVICES hides: Ray leaves them out too."""
    there, visible = len(list(devices.glob("nvidia[0-9]*"))), os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return there
    hidden = visible.strip() in ("", "-1", "NoDevFiles")
    return 0 if hidden else min(there, len(visible.split(",")))


def unplaceable(resources: Mapping[str, Resources], cluster: LocalCluster) -> Iterator[tuple[str, str]]:
    """What asks for more than this machine has, by name, each with what is too much: Ray would wait forever."""
    this = machine(cluster)
    for name, what in nodes.unplaceable(resources, [this], KNOWS):
        none = resources[name].gpus and not this.has["GPU"]
        yield name, what + (". There is no GPU: leave gpus out, or run where there is one" if none else "")


def start(cluster: LocalCluster) -> None:
    """Start Ray on the loopback address, without a dashboard; workers' output comes through this process."""
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "1"  # a worker without GPUs must not see any
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Under `uv run` Ray would pack the current folder, with its store, and start every worker through uv.
    os.environ.setdefault(_PACK_UNDER_UV, "0")
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # training workers talk to each other on this machine only
    import ray
    from ray._private import ray_constants

    # Ray reads this one when it is imported, which the module of a user's judge may have done already.
    ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = ray_constants.env_bool(_PACK_UNDER_UV, True)
    ray.init(
        address="local",  # never join a cluster that happens to run here
        num_cpus=cluster.total_cpus,
        object_store_memory=cluster.object_store_mib << 20,
        include_dashboard=False,
        configure_logging=False,
        _node_ip_address="127.0.0.1",
        # A process that has imported torch or vLLM waits for the next stage that needs it.
        _system_config={"num_workers_soft_limit": 8, "idle_worker_killing_time_threshold_ms": 3_600_000},
    )


def stop() -> None:
    import ray

    ray.shutdown()
