"""How good a trial's model is, on the way and in the end: its ranking of held-out pairs."""

from __future__ import annotations

from collections.abc import Callable
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
        model.eval()  # an adapter's dropout is off here
        found = self.rank(lambda pairs: score(model, pairs, worker, model.layout))
        without_dropout(model)
        return {MEASURED + name: found[name] for name in NAMES if found.get(name) is not None}

    def rank(self, scored: Callable[[list[Any]], torch.Tensor]) -> dict[str, Any]:
        """What ``rank`` finds, with log-probabilities [pairs, 2] by the given function.

        Raises:
            StageError: a log-probability is not finite.
        """
        data = ShardData(self.shards, self.reference)
        indices = range(len(data))
        pairs = data.pairs(indices)
        columns = [*scored(pairs).unbind(1), torch.zeros(len(pairs))]
        if needs_kl(self.objective) and (others := data.mismatched(indices)):
            columns[2] = scored(others)[:, 0]
        against = None if self.reference is None else data.reference(indices)
        return rank(pairs, torch.stack(columns), against, self.objective)
