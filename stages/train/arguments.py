"""What the driver tells every training worker. Imports no torch: the driver does without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from stages.base import TrainResources
from stages.io.artifact import Artifact
from stages.io.output import Output
from stages.train.config import FitConfig

POLICY = "policy"
"""The part that a training makes."""
REWARDED = "reward.json"
"""Beside a finished reward model: its proof, and how it ranks held-out pairs."""
MEASURED = "heldout/"
"""What a look at the model found stands in a step's row under names that begin with it."""


class Watch(Protocol):
    """Looks at a training on its way: the trial of a sweep."""

    def due(self, step: int, steps: int) -> bool:
        """Whether it looks at the model after optimizer step ``step`` of ``steps``."""
        ...

    def measure(self, model: Any, worker: Any) -> dict[str, float]:
        """What it finds (``model`` is a ``ResponseLogprobs``); becomes part of the step's row. All workers call it."""
        ...


def is_measured(row: Mapping[str, float]) -> bool:
    """Whether a step was followed by a look at the model."""
    return any(name.startswith(MEASURED) for name in row)


@dataclass(frozen=True)
class Arguments:
    config: FitConfig
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
    watch: Watch | None = None
    finish: bool = True
    """Write the policy. The end of a trial is a checkpoint: policies are made of the best ones alone."""
