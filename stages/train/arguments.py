"""What the driver tells every training worker. Imports no torch: the driver does without."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.base import TrainResources
from stages.train.config import TrainConfig


@dataclass(frozen=True)
class Arguments:
    config: TrainConfig
    resources: TrainResources
    cpus: int
    paths: dict[str, str]
    """Folders of the stage's inputs, by name."""
    progress: Any
    """The board (``stages.io.board``)."""
    scratch: str
    """Folder that checkpoints are put together in."""
    importable: tuple[str, ...]
    """The driver's ``sys.path``: the user's own losses stand beside the spec."""
    start: Path | None
    """The newest checkpoint of earlier attempts, which may have had another number of workers."""
