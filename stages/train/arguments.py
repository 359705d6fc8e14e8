"""What the driver tells every training worker. Imports no torch: the driver does without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stages.base import TrainResources
from stages.io.artifact import Artifact
from stages.io.output import Output
from stages.train.config import TrainConfig

POLICY = "policy"
"""The part that a training makes."""


@dataclass(frozen=True)
class Arguments:
    config: TrainConfig
    resources: TrainResources
    cpus: int
    inputs: dict[str, Artifact]
    """The stage's inputs, by name."""
    output: Output
    """Where checkpoints and the finished policy go."""
    progress: Any
    """The board (``stages.io.board``)."""
    importable: tuple[str, ...]
    """The driver's ``sys.path``: the user's own losses stand beside the spec."""
