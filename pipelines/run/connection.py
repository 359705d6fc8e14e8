"""The Ray that a command uses: this machine's, or a cluster's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clusters import local, running
from clusters.local import LocalCluster
from pipelines import plugins
from pipelines.run.store import ArtifactStore
from pipelines.spec.load import Loaded


@dataclass
class Connection:
    """Made when it is first needed, so that a command that finds everything done starts nothing."""

    loaded: Loaded
    store: ArtifactStore
    ray: str | LocalCluster | None
    """An address, or the settings of this machine's own."""
    wait: float
    """Seconds for which a stage waits for machines that the cluster adds on demand."""
    say: Callable[[str], None]
    sweep: bool = False
    """Trials of the spec's sweep have to have a place, too."""
    is_open: bool = False

    def open(self) -> None:
        if self.is_open:
            return
        self.is_open = True
        resources = self.loaded.spec.places(self.sweep)
        if not isinstance(self.ray, str):
            local.start(self.ray or local.default())
            running.require(resources)
            return
        named = plugins.module_names(self.loaded.spec.model_dump())
        running.join(self.ray, plugins.travelling(named, [self.loaded.path.parent, Path.cwd()]))
        running.require(resources, self.store.store, named, self.wait, lambda text: self.say(f"      {text}"))

    def close(self) -> None:
        if self.is_open:
            local.stop()
            self.is_open = False
