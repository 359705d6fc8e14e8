"""How far a policy has moved from its reference: KL(policy || reference), estimated on the policy's own answers.

The answers must be drawn from the policy at temperature 1 without cutting off its tail (top_p 1, top_k off), and the
log-probabilities must be of whole answers with their end. On answers from elsewhere, such as a dataset's chosen ones,
these numbers are log-ratios and no KL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.core.bootstrap import Floats, Interval, bootstrap, ratio


@dataclass(frozen=True)
class Divergence:
    """``sequence`` is the KL of answers in nats per prompt, ``token`` in nats per token; ``negative`` is the share of
    answers to which the reference gives more probability than the policy."""

    sequence: Interval
    token: Interval
    negative: float


def divergence(
    policy: Sequence[float] | Floats,
    reference: Sequence[float] | Floats,
    tokens: Sequence[float] | Floats,
    prompts: Sequence[object],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Divergence:
    """The KL from log-probabilities of whole answers.

    The estimator is k1 = log pi(y|x) - log ref(y|x) (Schulman, "Approximating KL Divergence",
    http://joschu.net/blog/kl-approx.html): unbiased, and may be negative on few answers, which the interval shows. It
    is averaged over a prompt's answers, and these over prompts. Schulman's k3 has less variance while pi / ref is near
    1, as it is for most tokens. For a whole answer it is not: k3 then holds exp(-k1), whose mean a few rare answers
    decide, and which is far too small until one of them turns up. So k3 is not offered.

    Args:
        policy, reference: (answers,): log-probability of each answer, summed over its tokens.
        tokens: (answers,): how many tokens were summed. prompts: (answers,): the prompt of each answer.

    Raises:
        ValueError: shapes differ, there are no answers, a number is not finite, or an answer has no tokens.
    """
    ours, theirs, sizes = (np.asarray(x, dtype=np.float64) for x in (policy, reference, tokens))
    if not ours.size or not (ours.shape == theirs.shape == sizes.shape == (len(prompts),)):
        raise ValueError("a KL needs log-probabilities, tokens and prompts of the same answers, at least one")
    if not np.isfinite([ours, theirs, sizes]).all() or sizes.min() < 1:
        raise ValueError("a KL needs finite log-probabilities, and at least one token in each answer")
    k1 = ours - theirs
    numbers: dict[object, int] = {}
    which = np.array([numbers.setdefault(prompt, len(numbers)) for prompt in prompts])
    answers = np.bincount(which)
    mean_k1, mean_tokens = (np.bincount(which, weights=values) / answers for values in (k1, sizes))
    return Divergence(
        sequence=bootstrap(mean_k1, resamples, confidence, seed),
        token=ratio(mean_k1, mean_tokens, resamples, confidence, seed),
        negative=float((k1 < 0).mean()),
    )
