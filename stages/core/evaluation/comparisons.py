"""Wins, ties and losses of a policy's samples against a baseline's, prompt by prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stages.core.bootstrap import Floats


@dataclass(frozen=True)
class Shares:
    """Shares of the (policy sample, baseline sample) pairs of each prompt, (prompts,) each, in ``prompts``' order; the
    three add up to 1 on every prompt."""

    prompts: tuple[str, ...]
    wins: Floats
    ties: Floats
    losses: Floats

    @property
    def win_rates(self) -> Floats:
        """(prompts,): a tie is half a win."""
        return self.wins + 0.5 * self.ties

    @property
    def means(self) -> dict[str, float]:
        """Mean over prompts of each share, each prompt counting once however many samples it has."""
        sides = {"wins": self.wins, "ties": self.ties, "losses": self.losses}
        return {name: float(values.mean()) for name, values in sides.items()}


def shares(
    policy: Mapping[str, Sequence[float]], baseline: Mapping[str, Sequence[float]], tolerance: float = 0.0
) -> Shares:
    """Compare every sample of the policy with every sample of the baseline on the same prompt.

    Args:
        policy, baseline: scores of the samples by prompt id; the same prompts on both sides, at least one sample each.
        tolerance: scores that differ by no more than this tie. With 0 only equal scores do.

    Raises:
        ValueError: the prompts differ, there are none, one has no samples, a score is NaN, or the tolerance is below 0.
    """
    if set(policy) != set(baseline) or not policy:
        raise ValueError("shares of wins need the same prompts, at least one, on both sides")
    if not tolerance >= 0:
        raise ValueError(f"a tolerance is at least 0, not {tolerance}")
    prompts = tuple(sorted(policy))
    found = np.array([_of_one(policy[prompt], baseline[prompt], tolerance, prompt) for prompt in prompts])
    wins, ties, losses = found.T
    return Shares(prompts, wins, ties, losses)


def _of_one(
    ours: Sequence[float], theirs: Sequence[float], tolerance: float, prompt: str
) -> tuple[float, float, float]:
    one, two = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if not one.size or not two.size or np.isnan(one).any() or np.isnan(two).any():
        raise ValueError(f"prompt {prompt!r} has no samples on a side, or a score that is not a number")
    # Comparisons, not differences: infinite scores are in order too, and inf - inf would be NaN.
    above, below = one[:, None] > two[None, :] + tolerance, one[:, None] < two[None, :] - tolerance
    wins, losses = float(above.mean()), float(below.mean())
    return wins, float((~above & ~below).mean()), losses
