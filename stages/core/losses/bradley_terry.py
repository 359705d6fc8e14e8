"""The loss of a reward model: how likely it finds the preferences that there are."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from stages.core.losses.inputs import LossInput, weights
from stages.core.losses.objective import Objective, Outcome
from stages.core.tokens.pair import EncodedPair


def bradley_terry(chosen: Tensor, rejected: Tensor, probability: Tensor, margin: float = 0.0) -> Tensor:
    """-p log s(d) - (1 - p) log s(-d) with d = r_w - r_l - m and m = margin * (2 p - 1), for every pair [pairs].

    s is the logistic function, r_w and r_l are the rewards of the chosen and the rejected response, p is the
    probability that the chosen one is preferred. With p = 1 and margin 0 it is Ouyang et al., arXiv:2203.02155,
    equation 1; the margin is that of Touvron et al., arXiv:2307.09288, section 3.2.2, where it follows from raters'
    words (significantly better, ...): here from how sure the label is, 0 for a tie and whole for a certain one.

    Example: rewards 2 and 0, p = 1: -ln s(2) = 0.126928; with margin 1: -ln s(1) = 0.313262; with p = 0.75 and no
    margin: 0.75 * 0.126928 + 0.25 * 2.126928 = 0.626928.
    """
    difference = chosen - rejected - margin * (2 * probability - 1)
    return -probability * F.logsigmoid(difference) - (1 - probability) * F.logsigmoid(-difference)


class BradleyTerry(Objective):
    """The objective of a reward model's training: the loss above times each pair's weight. What stands for
    log-probabilities in a ``LossInput`` are the model's rewards."""

    def __init__(self, margin: float) -> None:
        self._margin = margin
        self.needs_reference = self.needs_kl = self.needs_confidence = self.coupled = False
        self.pairwise = True

    def __call__(self, x: LossInput, pairs: Sequence[EncodedPair]) -> Outcome:
        losses = weights(x, pairs) * bradley_terry(x.chosen, x.rejected, x.probability, self._margin)
        return Outcome(losses, x.chosen.detach(), x.rejected.detach(), {})
