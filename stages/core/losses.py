"""Preference losses: one pure function each, from log-probabilities to per-pair losses and rewards."""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

Losses = tuple[Tensor, Tensor, Tensor]
"""Per-pair losses, and the detached rewards of chosen and rejected; each float32 of shape [pairs]."""


class LossFn(Protocol):
    def __call__(
        self,
        chosen: Tensor,
        rejected: Tensor,
        ref_chosen: Tensor,
        ref_rejected: Tensor,
        probability: Tensor,
        beta: float,
    ) -> Losses: ...


def sigmoid(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, probability: Tensor, beta: float
) -> Losses:
    """DPO with an optional preference probability.

    With z = beta * [(log pi(y_w) - log ref(y_w)) - (log pi(y_l) - log ref(y_l))] the loss of a pair is

        p * (-log sigmoid(z)) + (1 - p) * (-log sigmoid(-z)).

    p = 1 is equation 7 of Rafailov et al., "Direct Preference Optimization" (arXiv:2305.18290); p = 1 - epsilon
    for all pairs is conservative DPO (Mitchell, "A note on DPO with noisy preferences", equation 3).

    Args:
        chosen, rejected: log-probabilities of the responses under the policy, float32 [pairs].
        ref_chosen, ref_rejected: the same under the reference, without gradient.
        probability: how likely chosen is preferred, 0 to 1, [pairs].
        beta: strength of the pull towards the reference, > 0.
    """
    chosen_reward = beta * (chosen - ref_chosen)
    rejected_reward = beta * (rejected - ref_rejected)
    z = chosen_reward - rejected_reward
    losses = -probability * F.logsigmoid(z) - (1 - probability) * F.logsigmoid(-z)
    return losses, chosen_reward.detach(), rejected_reward.detach()


LOSSES: dict[str, LossFn] = {"sigmoid": sigmoid}
"""Every loss that ``train.loss`` may name."""

__all__ = ["LOSSES", "LossFn", "Losses", "sigmoid"]
