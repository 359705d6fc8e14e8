"""How good a trial's model is, on the way and in the end: its ranking of held-out pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from stages.core.losses.config import ObjectiveConfig, needs_kl
from stages.data.shards import ShardData
from stages.io.artifact import Artifact
from stages.score.ranking import rank
from stages.train.arguments import MEASURED
from stages.train.gradients import score
from stages.train.policy import without_dropout
from stages.train.worker import Worker
from stages.tune.told import NAMES, Rungs


@dataclass(frozen=True)
class HeldOut:
    """Looks at a trial's model at its rungs (``stages.train.arguments.Watch``)."""

    shards: Artifact
    """The held-out pairs."""
    reference: Artifact | None
    """The reference's log-probabilities of them, if the loss compares with one."""
    objective: ObjectiveConfig
    rungs: Rungs

    def due(self, step: int, steps: int) -> bool:
        return step in self.rungs.steps(steps)

    def measure(self, model: Any, worker: Worker) -> dict[str, float]:
        """How it ranks the held-out pairs, under names that begin with ``MEASURED``.

        Raises:
            StageError: a log-probability is not finite.
        """
        data = ShardData(self.shards, self.reference)
        indices = range(len(data))
        pairs = data.pairs(indices)
        others = data.mismatched(indices) if needs_kl(self.objective) else []
        model.eval()  # an adapter's dropout is off here
        scored = score(model, pairs, worker, model.layout)
        other = score(model, others, worker, model.layout)[:, 0] if others else torch.zeros(len(pairs))
        without_dropout(model)
        against = None if self.reference is None else data.reference(indices)
        found = rank(pairs, torch.stack([*scored.unbind(1), other]), against, self.objective)
        return {MEASURED + name: found[name] for name in NAMES if found.get(name) is not None}
