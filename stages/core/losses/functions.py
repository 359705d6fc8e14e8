"""Preference losses: one pure function each, from log-probabilities to one loss per pair.

Notation of the docstrings: w is the chosen and l the rejected response, |y| a response's counted tokens, s the
logistic function, u = log pi(y) - log ref(y) the log-ratio and r = beta * u the implicit reward of a response.
Pair A of the examples has log pi(w) = -10, log ref(w) = -12, |w| = 4, log pi(l) = -9, log ref(l) = -7 and |l| = 2,
so that u_w = 2 and u_l = -2; with beta = 0.5 the rewards are 1 and -1.

Labels that are not certain are treated alike by all (``expected``): with p the probability that w is preferred the loss
is p * loss(w, l) + (1 - p) * loss(l, w). Losses that add a response's likelihood so add that of the preferred one.
TRL smooths the labels of some losses only and has no probabilities of preferences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.core.losses.config import TRAITS
from stages.core.losses.inputs import LossInput, expected, log_odds, per_token, smoothed


def _margin(x: LossInput, beta: float) -> Tensor:
    """z = r_w - r_l."""
    chosen, rejected = x.ratios
    return beta * (chosen - rejected)


def sigmoid(x: LossInput, beta: float, *, label_smoothing: float = 0.0) -> Tensor:
    """DPO: -log s(r_w - r_l). Rafailov et al., arXiv:2305.18290, equation 7.

    Example: pair A, beta 0.5: -ln s(2) = ln(1 + e^-2) = 0.126928; with p = 0.75, 0.75 * 0.126928 +
    0.25 * 2.126928 = 0.626928.
    """
    return expected(lambda y: -F.logsigmoid(_margin(y, beta)), x, label_smoothing)


def robust(x: LossInput, beta: float, *, label_smoothing: float = 0.1) -> Tensor:
    """Robust DPO: [(1 - e) (-log s(z)) - e (-log s(-z))] / (1 - 2 e) with z = r_w - r_l.

    Unbiased when a share e of the preferences is flipped at random. Not bounded below: a pair that is told apart with
    too much confidence is pulled back. Chowdhury et al., arXiv:2403.00409.

    Example: pair A, beta 0.5, e = 0.1: (0.9 * 0.126928 - 0.1 * 2.126928) / 0.8 = -0.123072.
    """
    e = label_smoothing

    def loss(y: LossInput) -> Tensor:
        z = _margin(y, beta)
        return (e * F.logsigmoid(-z) - (1 - e) * F.logsigmoid(z)) / (1 - 2 * e)

    return expected(loss, x)


def ipo(x: LossInput, beta: float, *, label_smoothing: float = 0.0) -> Tensor:
    """IPO: (u_w / |w| - u_l / |l| - 1 / (2 beta))^2. Azar et al., arXiv:2310.12036, equation 17 (beta is their tau).

    The paper sums over tokens; its authors have said that their results come from means over each response's tokens.

    Example: pair A, beta 0.5: (2/4 + 2/2 - 1)^2 = 0.25.
    """

    def loss(y: LossInput) -> Tensor:
        chosen, rejected = y.ratios
        difference = per_token(chosen, y.chosen_tokens) - per_token(rejected, y.rejected_tokens)
        return torch.square(difference - 1 / (2 * beta))

    return expected(loss, x, label_smoothing)


def hinge(x: LossInput, beta: float, *, label_smoothing: float = 0.0) -> Tensor:
    """SLiC: max(0, 1 - (r_w - r_l)). Zhao et al., arXiv:2305.10425.

    Their rank loss on the policy's log-probabilities, here on log-ratios as in Liu et al., arXiv:2309.06657, with the
    margin 1 in units of reward. Their regularisation towards a text is ``sft_weight``.

    Example: pair A, beta 0.1: 1 - 0.4 = 0.6; beta 0.5: 0.
    """
    return expected(lambda y: F.relu(1 - _margin(y, beta)), x, label_smoothing)


def kto(x: LossInput, beta: float, *, desirable_weight: float = 1.0, undesirable_weight: float = 1.0) -> Tensor:
    """KTO: D (1 - s(beta (u_w - z0))) for a chosen and U (1 - s(beta (z0 - u_l))) for a rejected response.

    D, U are the weights and z0 = max(0, ``x.kl``). Ethayarajh et al., arXiv:2402.01306, equation 7.

    Each response is an example of its own, and a row's loss is the sum over its responses: whether examples come in
    pairs or alone, each weighs the same in the mean over rows. With pairs only, that mean is twice the paper's mean
    over examples.

    Example: pair A, beta 0.5, z0 = 1: s(-0.5) + s(-1.5) = 0.377541 + 0.182426 = 0.559966.

    Raises:
        ValueError: ``x.kl`` is missing.
    """
    if x.kl is None:
        raise ValueError("kto needs an estimate of the divergence from the reference (LossInput.kl)")
    z0 = x.kl.clamp(min=0)

    def loss(y: LossInput) -> Tensor:
        chosen, rejected = y.ratios
        desirable = desirable_weight * torch.sigmoid(beta * (z0 - chosen))
        undesirable = undesirable_weight * torch.sigmoid(beta * (rejected - z0))
        return _present(desirable, y.chosen_tokens) + _present(undesirable, y.rejected_tokens)

    return expected(loss, x)


def _present(value: Tensor, tokens: Tensor) -> Tensor:
    return torch.where(tokens > 0, value, torch.zeros_like(value))


def bco(x: LossInput, beta: float) -> Tensor:
    """BCO: -log s(r_w - d) for a chosen and -log s(-(r_l - d)) for a rejected response, summed over a row as in
    ``kto``. Jung et al., arXiv:2404.04656.

    d is the mean reward of all responses given, without gradient, so all pairs of the optimizer step have to be given
    at once. A moving average over the steps, as others keep, would make a step depend on those before; TRL's
    ``bco_pair`` has no d. The paper's density ratio for prompts that differ between chosen and rejected is left out.

    Example, beta 0.5: pair A and a pair with rewards 3 and 1, so d = 1: -ln s(0) - ln s(2) = 0.693147 + 0.126928 =
    0.820075 for pair A, -ln s(2) - ln s(0) = 0.820075 for the other.
    """

    def loss(y: LossInput) -> Tensor:
        chosen, rejected = (beta * ratio for ratio in y.ratios)
        counts = torch.cat([y.chosen_tokens, y.rejected_tokens]) > 0
        both = torch.cat([chosen, rejected]).detach()
        delta = (both * counts).sum() / counts.sum().clamp(min=1)
        good = _present(-F.logsigmoid(chosen - delta), y.chosen_tokens)
        return good + _present(-F.logsigmoid(delta - rejected), y.rejected_tokens)

    return expected(loss, x)


def simpo(x: LossInput, beta: float, *, gamma: float = 0.5, label_smoothing: float = 0.0) -> Tensor:
    """SimPO: -log s(beta log pi(w) / |w| - beta log pi(l) / |l| - gamma). Meng et al., arXiv:2405.14734, equation 6.

    No reference. Their beta is 2 to 10.

    Example: pair A, beta 0.5, gamma 0.5: z = 0.5 * (-2.5 + 4.5) - 0.5 = 0.5, ln(1 + e^-0.5) = 0.474077.
    """

    def loss(y: LossInput) -> Tensor:
        chosen, rejected = y.means
        return -F.logsigmoid(beta * (chosen - rejected) - gamma)

    return expected(loss, x, label_smoothing)


def orpo(x: LossInput, beta: float, *, label_smoothing: float = 0.0) -> Tensor:
    """ORPO: -m_w - beta log s(log odds(m_w) - log odds(m_l)), odds(m) = e^m / (1 - e^m), m = log pi(y) / |y|.

    Hong et al., arXiv:2403.07691, equations 6 and 7; beta is their lambda. No reference. The likelihood is the
    response's alone, without the prompt's tokens that TRL counts.

    Example: m_w = ln 0.5, m_l = ln 0.2, beta 0.5: the odds are 1 and 0.25, so ln 2 + 0.5 * ln 1.25 = 0.804719.
    """

    def loss(y: LossInput) -> Tensor:
        chosen, rejected = y.means
        return -chosen - beta * F.logsigmoid(log_odds(chosen) - log_odds(rejected))

    return expected(loss, x, label_smoothing)


def cpo(x: LossInput, beta: float, *, alpha: float = 1.0, label_smoothing: float = 0.0) -> Tensor:
    """CPO: -log s(beta (log pi(w) - log pi(l))) - alpha log pi(w) / |w|. Xu et al., arXiv:2401.08417.

    No reference. The paper sums the likelihood over tokens, its authors' code averages; the mean is taken here over
    each response's own tokens and not, as there and in TRL, over the batch's: how a batch is split must not matter.

    Example: pair A, beta 0.5, alpha 1: -ln s(-0.5) + 10/4 = 0.974077 + 2.5 = 3.474077.
    """

    def loss(y: LossInput) -> Tensor:
        return -F.logsigmoid(beta * (y.chosen - y.rejected)) - alpha * y.means[0]

    return expected(loss, x, label_smoothing)


def apo_zero(x: LossInput, beta: float, *, label_smoothing: float = 0.0) -> Tensor:
    """APO-zero: 1 - s(r_w) + s(r_l): chosen up, rejected down. D'Oosterlinck et al., arXiv:2408.06266, equation 7,
    plus the constant 1.

    Example: pair A, beta 0.5: 1 - s(1) + s(-1) = 0.268941 + 0.268941 = 0.537883.
    """

    def loss(y: LossInput) -> Tensor:
        chosen, rejected = y.ratios
        return torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)

    return expected(loss, x, label_smoothing)


def apo_down(x: LossInput, beta: float, *, label_smoothing: float = 0.0) -> Tensor:
    """APO-down: s(r_w) + 1 - s(r_w - r_l): both down, rejected more. D'Oosterlinck et al., arXiv:2408.06266,
    equation 8, plus the constant 1.

    Example: pair A, beta 0.5: s(1) + s(-2) = 0.731059 + 0.119203 = 0.850262.
    """

    def loss(y: LossInput) -> Tensor:
        return torch.sigmoid(beta * y.ratios[0]) + torch.sigmoid(-_margin(y, beta))

    return expected(loss, x, label_smoothing)


def exo(x: LossInput, beta: float, *, label_smoothing: float = 1e-3) -> Tensor:
    """EXO: KL(q || (1 - e, e)) with q = (s(z), s(-z)), z = r_w - r_l. Ji et al., arXiv:2402.00856, equation 16.

    The least loss, 0, is at s(z) = 1 - e.

    Example: pair A, beta 0.5, e = 0.1: q = 0.880797: q (ln q - ln 0.9) + (1 - q) (ln(1 - q) - ln 0.1) = 0.001942.
    """
    log_chosen, log_rejected = math.log1p(-label_smoothing), math.log(label_smoothing)

    def loss(y: LossInput) -> Tensor:
        z = _margin(y, beta)
        chosen = torch.sigmoid(z) * (F.logsigmoid(z) - log_chosen)
        return chosen + torch.sigmoid(-z) * (F.logsigmoid(-z) - log_rejected)

    return expected(loss, x)


def nca(x: LossInput, beta: float, *, label_smoothing: float = 0.0) -> Tensor:
    """NCA for pairs: -log s(r_w) - (log s(-r_w) + log s(-r_l)) / 2. Chen et al., arXiv:2402.05369,
    with two responses. It holds up the likelihood of the chosen response besides telling the two apart.

    Example: pair A, beta 0.5: 0.313262 + (1.313262 + 0.313262) / 2 = 1.126523.
    """

    def loss(y: LossInput) -> Tensor:
        chosen, rejected = (beta * ratio for ratio in y.ratios)
        return -F.logsigmoid(chosen) - 0.5 * (F.logsigmoid(-chosen) + F.logsigmoid(-rejected))

    return expected(loss, x, label_smoothing)


def sppo(x: LossInput, beta: float, *, label_smoothing: float = 0.0) -> Tensor:
    """SPPO, hard form: (u_w - 1 / (2 beta))^2 + (u_l + 1 / (2 beta))^2. Wu et al., arXiv:2405.00675, equation 4.7,
    with eta = 1 / beta and win rates 1 and 0.

    With other probabilities p it has the gradient of their soft form: the two differ by a constant.

    Example: pair A, beta 0.5: (2 - 1)^2 + (-2 + 1)^2 = 2.
    """

    def loss(y: LossInput) -> Tensor:
        chosen, rejected = y.ratios
        return torch.square(chosen - 0.5 / beta) + torch.square(rejected + 0.5 / beta)

    return expected(loss, x, label_smoothing)


def discopop(x: LossInput, beta: float, *, temperature: float = 0.05, label_smoothing: float = 0.0) -> Tensor:
    """DiscoPOP: (1 - s(z / t)) (-log s(z)) + s(z / t) e^-z, z = r_w - r_l. Lu et al., arXiv:2406.08414, equation 5.

    Example: pair A, beta 0.5, t = 1: 0.119203 * 0.126928 + 0.880797 * 0.135335 = 0.134333.
    """

    def loss(y: LossInput) -> Tensor:
        z = _margin(y, beta)
        exponential = torch.exp(F.logsigmoid(z / temperature) - z)  # e^-z alone overflows where its factor is 0
        return exponential - torch.sigmoid(-z / temperature) * F.logsigmoid(z)

    return expected(loss, x, label_smoothing)


def aot(x: LossInput, beta: float, *, label_smoothing: float = 0.0) -> Tensor:
    """AOT, paired: -log s(beta (a_(i) - b_(i))), a = log pi(w) - log pi(l) and b = log ref(w) - log ref(l), each
    sorted over all pairs given. Melnyk et al., arXiv:2406.05882, with the
    logistic loss.

    The policy's margins as a whole are to lie above the reference's, whichever pairs they belong to, so all pairs of
    the optimizer step have to be given at once. The loss of rank i is that of the pair whose a has rank i; the
    expectation over its label is taken with the sorting held fixed. TRL sorts within a device's batch.

    Example: beta 0.5, a = (-1, -3), b = (-5, 1): the second pair meets -5, z = 1, 0.313262; the first meets 1, z = -1,
    1.313262.
    """
    a, b = x.chosen - x.rejected, x.ref_chosen - x.ref_rejected
    rank = a.detach().argsort(stable=True).argsort()
    z = beta * (a - b.sort().values[rank])
    p = smoothed(x.probability, label_smoothing)
    return -p * F.logsigmoid(z) - (1 - p) * F.logsigmoid(-z)


LossFn = Callable[..., Tensor]
"""Called with (x: LossInput, beta: float, **options); one loss per pair, with its graph."""

LOSSES: Mapping[str, LossFn] = {name: globals()[name] for name in TRAITS}
"""Every loss that ``train.loss`` may name."""

__all__ = ["LOSSES", "LossFn", "LossInput"]
