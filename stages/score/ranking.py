"""How a policy ranks held-out pairs: loss, reward accuracy and margin, from log-probabilities of both models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stages.base import StageError, Summary
from stages.core.losses.config import ObjectiveConfig
from stages.core.losses.inputs import loss_input
from stages.core.losses.objective import Objective, Outcome
from stages.core.metrics import BY_TASK
from stages.core.tokens.pair import EncodedPair
from stages.data.shards import ShardData
from stages.io.artifact import Artifact
from stages.io.context import StageContext
from stages.score.config import HeldoutConfig


def run(config: HeldoutConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Means over all held-out pairs and over those of each task.

    Raises:
        StageError: a log-probability, and with it the loss, is not finite.
    """
    policy = ShardData(inputs["shards"], inputs["policy"])
    indices = range(len(policy))
    against = None
    if (reference := inputs.get("reference")) is not None:
        against = ShardData(inputs["shards"], reference).reference(indices)
    pairs = policy.pairs(indices)
    found = rank(pairs, policy.reference(indices), against, config.objective)
    context.progress(len(pairs), len(pairs), "pairs")
    return found


def rank(
    pairs: Sequence[EncodedPair], scored: Tensor, against: Tensor | None, objective: ObjectiveConfig
) -> dict[str, Any]:
    """How a policy ranks pairs: ``pairs`` (how many), ``loss``, ``reward_accuracy``, ``reward_margin``, with a
    reference ``kl``, the mean of log pi(y) - log ref(y) over the responses, and the same by task.

    A row with only one response has no margin and counts in the loss alone.

    Args:
        scored: float32 [3, pairs], the policy's log-probabilities of the chosen, the rejected and the mismatched
            response.
        against: the reference's.

    Raises:
        StageError: a log-probability, and with it the loss, is not finite.
    """
    reference = torch.zeros_like(scored) if against is None else against
    # KTO's z0 over everything that is held out; zero where the other answers were not scored.
    z0 = (scored[2] - reference[2]).mean().clamp(min=0)
    x = loss_input(pairs, scored[:2].T.flatten(), torch.zeros(2 * len(pairs)), reference, z0)
    outcome = Objective(objective)(x, pairs)
    if not torch.isfinite(outcome.losses).all():
        bad = [pair.name for pair, fine in zip(pairs, outcome.losses.isfinite().tolist(), strict=True) if not fine]
        raise StageError(f"the held-out loss is not finite for {len(bad)} pairs, the first: {', '.join(bad[:5])}")
    there = torch.stack([x.chosen_tokens, x.rejected_tokens]) > 0
    everything = torch.ones(len(pairs), dtype=torch.bool)
    tasks = {
        task: torch.tensor([pair.task == task for pair in pairs]) for task in sorted({p.task for p in pairs} - {""})
    }
    means = _means(outcome, everything, there.all(0))
    if against is not None:
        means["kl"] = float((scored[:2] - against[:2])[there].double().mean())
    by_task = {task: _means(outcome, own, there.all(0)) for task, own in tasks.items()}
    return {**means, **({"tasks": by_task} if by_task else {})}


def _means(outcome: Outcome, own: Tensor, paired: Tensor) -> dict[str, float | int | None]:
    margins = (outcome.chosen_reward - outcome.rejected_reward)[own & paired]
    values = (outcome.losses.detach()[own], (margins > 0).float(), margins)
    means = {
        name: float(value.double().mean()) if len(value) else None for name, value in zip(BY_TASK, values, strict=True)
    }
    return {"pairs": int(own.sum()), **means}
