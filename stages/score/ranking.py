"""How a policy ranks held-out pairs: loss, reward accuracy and margin, from log-probabilities of both models."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stages.base import StageError, Summary
from stages.core.losses.inputs import loss_input
from stages.core.losses.objective import Objective, Outcome
from stages.core.metrics import BY_TASK
from stages.data.shards import ShardData
from stages.io.artifact import Artifact
from stages.io.context import StageContext
from stages.score.config import HeldoutConfig


def run(config: HeldoutConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Means over all held-out pairs and over those of each task.

    A row with only one response has no margin and counts in the loss alone.

    Raises:
        StageError: a log-probability, and with it the loss, is not finite.
    """
    reference = inputs.get("reference")
    policy = ShardData(inputs["shards"], inputs["policy"])
    indices = range(len(policy))
    scored = policy.reference(indices)
    against = torch.zeros_like(scored)
    if reference is not None:
        against = ShardData(inputs["shards"], reference).reference(indices)
    pairs = policy.pairs(indices)
    # KTO's z0 over everything that is held out; zero where the other answers were not scored.
    kl = (scored[2] - against[2]).mean().clamp(min=0)
    x = loss_input(pairs, scored[:2].T.flatten(), torch.zeros(2 * len(pairs)), against, kl)
    outcome = Objective(config.objective)(x, pairs)
    if not torch.isfinite(outcome.losses).all():
        bad = [pair.name for pair, fine in zip(pairs, outcome.losses.isfinite().tolist(), strict=True) if not fine]
        raise StageError(f"the held-out loss is not finite for {len(bad)} pairs, the first: {', '.join(bad[:5])}")
    paired = (x.chosen_tokens > 0) & (x.rejected_tokens > 0)
    everything = torch.ones(len(pairs), dtype=torch.bool)
    tasks = {
        task: torch.tensor([pair.task == task for pair in pairs]) for task in sorted({p.task for p in pairs} - {""})
    }
    means = _means(outcome, everything, paired)
    by_task = {task: _means(outcome, own, paired) for task, own in tasks.items()}
    context.progress(len(pairs), len(pairs), "pairs")
    return {**means, **({"tasks": by_task} if by_task else {})}


def _means(outcome: Outcome, own: Tensor, paired: Tensor) -> dict[str, float | int | None]:
    margins = (outcome.chosen_reward - outcome.rejected_reward)[own & paired]
    values = (outcome.losses.detach()[own], (margins > 0).float(), margins)
    means = {
        name: float(value.double().mean()) if len(value) else None for name, value in zip(BY_TASK, values, strict=True)
    }
    return {"pairs": int(own.sum()), **means}
