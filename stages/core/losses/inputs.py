"""What a preference loss is computed from, and the mathematics that several losses share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stages.core.tokens.pair import EncodedPair

_LARGEST_MEAN = -1e-6
"""Largest mean log-probability whose odds are told apart in float32."""


@dataclass(frozen=True)
class LossInput:
    """What a loss is computed from. Tensors are float32 of shape [pairs] unless it says otherwise.

    A row may hold one response only: the tokens and log-probabilities of the missing side are 0. Losses that do not
    take such rows (``stages.core.losses.config.TRAITS``) are never given any.
    """

    chosen: Tensor
    """Sum of log pi over the response's tokens, with its graph."""
    rejected: Tensor
    ref_chosen: Tensor
    """The same under the reference, without graph; zeros where no reference is needed."""
    ref_rejected: Tensor
    chosen_tokens: Tensor
    """Tokens that were counted."""
    rejected_tokens: Tensor
    probability: Tensor
    """How likely chosen is preferred, 0 to 1."""
    chosen_confidence: Tensor | None = None
    """Mean over the response's tokens of log p(token) - log sum_v p(v)^2, without graph; for ``wpo``."""
    rejected_confidence: Tensor | None = None
    kl: Tensor | None = None
    """The batch's estimate of KL(pi || ref), scalar, without graph; for ``kto``."""
    weight: Tensor | None = None
    """The pairs' weights; what a loss returns is multiplied by them."""

    def swapped(self) -> LossInput:
        """The same pairs with the opposite label."""
        return replace(
            self,
            chosen=self.rejected, rejected=self.chosen,
            ref_chosen=self.ref_rejected, ref_rejected=self.ref_chosen,
            chosen_tokens=self.rejected_tokens, rejected_tokens=self.chosen_tokens,
            probability=1 - self.probability,
            chosen_confidence=self.rejected_confidence, rejected_confidence=self.chosen_confidence,
        )  # fmt: skip

    @property
    def ratios(self) -> tuple[Tensor, Tensor]:
        """Log-ratios of both responses."""
        return self.chosen - self.ref_chosen, self.rejected - self.ref_rejected

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        """Mean log-probability a token under the policy, 0 for a missing response."""
        return per_token(self.chosen, self.chosen_tokens), per_token(self.rejected, self.rejected_tokens)


def per_token(value: Tensor, tokens: Tensor) -> Tensor:
    return value / tokens.clamp(min=1)


def smoothed(probability: Tensor, label_smoothing: float) -> Tensor:
    """The probability of a preference whose label is the wrong way round with probability ``label_smoothing``."""
    return probability * (1 - label_smoothing) + (1 - probability) * label_smoothing


def expected(loss: Callable[[LossInput], Tensor], x: LossInput, label_smoothing: float = 0.0) -> Tensor:
    """The expectation over the label of a loss that takes its label for certain: with p = ``x.probability``

        p * loss(w, l) + (1 - p) * loss(l, w).

    ``smoothed`` is applied to p before. For the sigmoid loss with p = 1 this is conservative DPO
    (Mitchell, "A note on DPO with noisy preferences", equation 3).
    """
    p = smoothed(x.probability, label_smoothing)
    return p * loss(x) + (1 - p) * loss(x.swapped())


def log_odds(logp: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p < 0. Towards 0 log p is held at the last value whose odds float32 can tell."""
    logp = logp.clamp(max=_LARGEST_MEAN)
    return logp - log1mexp(logp)


def log1mexp(value: Tensor) -> Tensor:
    """log(1 - exp(value)) for value < 0, exact at both ends (Maechler 2012, "Accurately computing log(1 - exp(-|a|))").

    Where the second branch is not taken it gets an argument at which its gradient is finite, since 0 * inf is NaN.
    """
    near = value > -0.6931472
    by_expm1 = torch.log(-torch.expm1(value))
    by_log1p = torch.log1p(-torch.exp(torch.where(near, -torch.ones_like(value), value)))
    return torch.where(near, by_expm1, by_log1p)


def known(pairs: Sequence[EncodedPair]) -> Tensor:
    """What a loss takes from pairs themselves, float32 [4, pairs]: tokens of both responses, probability, weight."""
    rows = [[len(p.chosen_ids), len(p.rejected_ids), p.probability, p.weight] for p in pairs]
    return torch.tensor(rows, dtype=torch.float32).T.contiguous()


def loss_input(
    pairs: Sequence[EncodedPair], logprobs: Tensor, confidences: Tensor, reference: Tensor, kl: Tensor | None
) -> LossInput:
    """What a loss sees of ``pairs``: as ``of_known``, which does not bring anything to a card."""
    return of_known(known(pairs).to(logprobs.device), logprobs, confidences, reference, kl)


def of_known(own: Tensor, logprobs: Tensor, confidences: Tensor, reference: Tensor, kl: Tensor | None) -> LossInput:
    """What a loss sees of some pairs. The log-probabilities become leaves, so that a loss can be differentiated by
    them.

    Args:
        own: as ``known`` gives it, on the device of the others.
        logprobs: float32 [2 * pairs], chosen and rejected in turn; ``confidences`` likewise.
        reference: float32 [2 or more, pairs], chosen and rejected.
    """
    chosen, rejected = (side.clone().requires_grad_() for side in logprobs.view(-1, 2).unbind(1))
    confident = confidences.view(-1, 2)
    return LossInput(
        chosen=chosen,
        rejected=rejected,
        ref_chosen=reference[0],
        ref_rejected=reference[1],
        chosen_tokens=own[0],
        rejected_tokens=own[1],
        probability=own[2],
        chosen_confidence=confident[:, 0],
        rejected_confidence=confident[:, 1],
        kl=kl,
        weight=own[3],
    )


def weights(x: LossInput, pairs: Sequence[EncodedPair]) -> Tensor:
    """The pairs' weights, where ``x`` has them."""
    if x.weight is not None:
        return x.weight
    return torch.tensor([pair.weight for pair in pairs], dtype=x.chosen.dtype, device=x.chosen.device)
