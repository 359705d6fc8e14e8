"""What a training minimises: the losses of a configuration, how their log-ratios are measured, and what is added."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.base import resolve
from stages.core.losses import config as loss_config
from stages.core.losses.functions import LOSSES
from stages.core.losses.inputs import LossInput, per_token, weights
from stages.core.tokens.pair import EncodedPair

_LINEAR_FROM = 20.0
"""Where ``_exp`` leaves the exponential function."""


class UserFunctionError(ValueError):
    """A user's loss or constraint returned something that is not one finite number per pair."""


class Rewards(NamedTuple):
    """Implicit rewards of the responses, [pairs] each, with graph; 0 for a missing response."""

    chosen: Tensor
    rejected: Tensor


@dataclass(frozen=True)
class Outcome:
    losses: Tensor
    """What each pair adds to the sum that is minimised, its weight included, [pairs], with graph."""
    chosen_reward: Tensor
    """Detached, [pairs], like all that follows."""
    rejected_reward: Tensor
    parts: Mapping[str, Tensor]
    """To be logged as means over pairs: ``loss/NAME`` of each of several losses, ``sft`` (without its weight),
    ``wpo_weight``, ``constraint/NAME`` (without its weight)."""


@dataclass(frozen=True)
class _Term:
    """A function of the objective with its place in the sum."""

    label: str
    weight: float
    function: Callable[..., Tensor]
    own: str | None
    """``module:function`` if it is the user's own."""


class Objective:
    """The function that one training minimises. It holds no state: equal arguments give equal outcomes.

    Of each pair it is

        weight * (wpo_weight * sum_i weight_i * loss_i  +  sft_weight * nll  +  sum_j weight_j * constraint_j)

    with the pair's own weight before all, and nll the preferred response's mean negative log-likelihood a token (RPO,
    Pang et al., arXiv:2404.19733), in expectation over the label. Rewards are those of the first loss.

    Attributes:
        needs_reference: the reference's log-probabilities are read; without it they may be zeros.
        needs_kl: ``LossInput.kl`` is read.
        needs_confidence: ``LossInput.chosen_confidence`` and ``rejected_confidence`` are read.
        coupled: a loss looks across pairs; call with all pairs of an optimizer step at once.
        pairwise: rows with only one response cannot be taken.

    Raises:
        ValueError: settings that cannot work together.
        ImportError: a user's function does not exist.
    """

    def __init__(self, config: loss_config.ObjectiveConfig) -> None:
        if problems := [f"{key} {message}" for key, message in loss_config.conflicts(config)]:
            raise ValueError("; ".join(problems))
        self._config = config
        traits = [loss_config.traits(loss) for loss in config.loss]
        self._first = traits[0]
        self.needs_reference = loss_config.needs_reference(config)
        self.needs_kl = any(each.kl for each in traits)
        self.needs_confidence = config.wpo
        self.coupled = any(each.coupled for each in traits)
        self.pairwise = not loss_config.takes_unpaired(config)
        self._losses = [
            _Term(label, loss.weight, partial(_function(loss.use), **loss_config.own_options(loss)),
                  loss.use if isinstance(loss, loss_config.CustomLoss) else None)
            for label, loss in zip(_labels("loss", config.loss), config.loss, strict=True)
        ]  # fmt: skip
        self._constraints = [
            _Term(label, each.weight, partial(resolve(each.use), **each.options), each.use)
            for label, each in zip(_labels("constraint", config.constraints), config.constraints, strict=True)
        ]

    def __call__(self, x: LossInput, pairs: Sequence[EncodedPair]) -> Outcome:
        """The outcome for ``pairs``, whose log-probabilities are ``x``.

        Raises:
            UserFunctionError: a user's function returned something that is not one finite number per pair.
        """
        parts: dict[str, Tensor] = {}
        measured = self._measured(x)
        losses = torch.zeros_like(x.chosen)
        for term in self._losses:
            value = term.function(measured, self._config.beta)
            if term.own is not None:
                _check(value, term.own, x, pairs)
                if x.chosen.requires_grad and not value.requires_grad:
                    raise UserFunctionError(f"{term.own} returned a loss without gradient; compute it from x.chosen")
            losses = losses + term.weight * value
            if len(self._losses) > 1:
                parts[term.label] = value
        if self._config.wpo:
            parts["wpo_weight"] = _wpo_weight(x)
            losses = losses * parts["wpo_weight"]
        if self._config.sft_weight:
            parts["sft"] = _preferred_nll(x)
            losses = losses + self._config.sft_weight * parts["sft"]
        rewards = self._rewards(x, measured)
        for term in self._constraints:
            penalty = term.function(x, rewards, pairs)
            _check(penalty, str(term.own), x, pairs)
            losses = losses + term.weight * penalty
            parts[term.label] = penalty
        losses = losses * weights(x, pairs)
        detached = {name: value.detach() for name, value in parts.items()}
        return Outcome(losses, rewards.chosen.detach(), rewards.rejected.detach(), detached)

    def _measured(self, x: LossInput) -> LossInput:
        """``x`` with its log-ratios as ``length_normalise`` and ``divergence`` measure them, over a reference of 0.

        Where a divergence other than the reverse KL is chosen, the reward is beta f'(pi / ref) instead of
        beta log(pi / ref) (Wang et al., "Beyond Reverse KL", arXiv:2309.16240, table 1, with constants
        that make it 0 where the policy is the reference).
        """
        config = self._config
        if not config.length_normalise and config.divergence.use == "reverse_kl":
            return x
        chosen, rejected = x.ratios
        if config.length_normalise:
            chosen, rejected = per_token(chosen, x.chosen_tokens), per_token(rejected, x.rejected_tokens)
        zero = torch.zeros_like(x.ref_chosen)
        return replace(
            x, chosen=_slope(chosen, config.divergence), rejected=_slope(rejected, config.divergence),
            ref_chosen=zero, ref_rejected=zero,
        )  # fmt: skip

    def _rewards(self, x: LossInput, measured: LossInput) -> Rewards:
        """beta times what the first loss compares: log-ratios, or log-probabilities if it has no reference."""
        chosen, rejected = measured.ratios if self._first.reference else (x.chosen, x.rejected)
        if self._first.averaged:
            chosen, rejected = per_token(chosen, x.chosen_tokens), per_token(rejected, x.rejected_tokens)
        return Rewards(self._config.beta * chosen, self._config.beta * rejected)


def _function(use: str) -> Callable[..., Tensor]:
    return LOSSES[use] if use in LOSSES else resolve(use)


def _labels(kind: str, items: Iterable[Any]) -> list[str]:
    """``kind/name`` of each; the second of the same name ends in ``_2``."""
    labels, seen = [], Counter[str]()
    for item in items:
        name = item.use.rpartition(":")[2]
        seen[name] += 1
        labels.append(f"{kind}/{name}" + (f"_{seen[name]}" if seen[name] > 1 else ""))
    return labels


def _slope(ratio: Tensor, divergence: loss_config.Divergence) -> Tensor:
    """f'(t) of the divergence at the log-ratio log t: log t, 1 - 1/t, log(2t / (1 + t)), (1 - t^-alpha) / alpha."""
    if isinstance(divergence, loss_config.AlphaDivergence):
        return (1 - _exp(-divergence.alpha * ratio)) / divergence.alpha
    if divergence.use == "forward_kl":
        return 1 - _exp(-ratio)
    return math.log(2) + F.logsigmoid(ratio) if divergence.use == "js" else ratio


def _exp(value: Tensor) -> Tensor:
    """The exponential function, continued as a straight line beyond 20: finite, and never without gradient, for a
    response that the policy has all but ruled out."""
    low = value.clamp(max=_LINEAR_FROM).exp()
    return low + math.exp(_LINEAR_FROM) * F.relu(value - _LINEAR_FROM)


def _wpo_weight(x: LossInput) -> Tensor:
    """How likely the policy is to write both responses, detached: exp of the sum of their mean confidences.

    Zhou et al., WPO, arXiv:2406.11827, equation 2 with sampled alignment, and like there without an upper bound. A
    missing response counts 1.
    """
    if x.chosen_confidence is None or x.rejected_confidence is None:
        raise ValueError("wpo needs the confidences of both responses (LossInput.chosen_confidence)")
    zero = torch.zeros_like(x.chosen_confidence)
    chosen = torch.where(x.chosen_tokens > 0, x.chosen_confidence, zero)
    rejected = torch.where(x.rejected_tokens > 0, x.rejected_confidence, zero)
    return (chosen + rejected).exp().detach()


def _preferred_nll(x: LossInput) -> Tensor:
    chosen, rejected = x.means
    return -x.probability * chosen - (1 - x.probability) * rejected


def _check(value: Any, use: str, x: LossInput, pairs: Sequence[EncodedPair]) -> None:
    """Refuse what a user's function must not return.

    Raises:
        UserFunctionError: it is not a tensor, of another shape or type than ``x.chosen``, or not finite.
    """
    expected = f"expected a tensor of {x.chosen.dtype} with shape {list(x.chosen.shape)}, one value per pair"
    if not isinstance(value, Tensor):
        raise UserFunctionError(f"{use} returned a {type(value).__name__}; {expected}")
    if value.shape != x.chosen.shape or value.dtype != x.chosen.dtype:
        raise UserFunctionError(f"{use} returned a tensor of {value.dtype} with shape {list(value.shape)}; {expected}")
    finite = value.detach().isfinite()
    if not bool(finite.all()):
        index = int((~finite).nonzero()[0])
        found = f"{value[index].item()} for the pair {pairs[index].name}"
        raise UserFunctionError(f"{use} returned {found}; expected finite numbers")
