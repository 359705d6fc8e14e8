"""Where a run finds its Ray: on this machine, or in a cluster that is running already."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.commands.common import open_store, refuse, refuse_all

if TYPE_CHECKING:
    from clusters.local import LocalCluster
    from pipelines.spec.load import Loaded


def ray_for(address: str | None, cluster: Path | None) -> str | LocalCluster:
    """Where a run finds its Ray: at an address, or here; or say why that cannot be and exit with 2."""
    from clusters.local import LocalCluster, default
    from pipelines.spec import clusterfile
    from pipelines.spec.problems import SpecError

    if cluster is None:
        return address or default()
    try:
        settings = clusterfile.load(cluster)
    except SpecError as error:
        refuse_all(error)
    if not isinstance(settings, LocalCluster):
        refuse(
            f"{cluster} is of kind {settings.kind}: rondo submit sends runs there, and rondo schedule --cron ticks; "
            "this command is for this machine"
        )
    if address is not None and address != os.environ.get("RAY_ADDRESS"):
        refuse("--address and --cluster are two clusters; give one")
    return settings


def ask(loaded: Loaded, store: str, address: str) -> None:
    """What the cluster at ``address`` says to a spec; or say what it lacks and exit with 2."""
    from clusters import local, running
    from pipelines import plugins
    from stages.base import StageError

    opened, named = open_store(store), plugins.module_names(loaded.spec.model_dump())
    try:
        running.join(address, plugins.travelling(named, [loaded.path.parent, Path.cwd()]))
        running.require(loaded.spec.places(sweep=True), opened.store, named)
    except StageError as error:
        refuse(str(error))
    finally:
        local.stop()
