"""What is measured: training metrics of a step, and win rates with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from stages.core.bootstrap import Interval, bootstrap

__all__ = ["BY_TASK", "Interval", "bootstrap", "step_means", "win_rates"]


def win_rates(policy: Mapping[str, Sequence[float]], baseline: Mapping[str, Sequence[float]]) -> list[float]:
    """Per prompt, the share of (policy sample, baseline sample) pairs that the policy wins; a tie is half a win.

    Args:
        policy, baseline: scores of the samples by prompt id; the same prompts on both sides.

    Raises:
        ValueError: the prompts differ, or there are none.
    """
    if set(policy) != set(baseline) or not policy:
        raise ValueError("a win rate needs the same prompts, at least one, on both sides")
    rates = []
    for prompt in sorted(policy):
        wins = [0.5 * (1 + np.sign(a - b)) for a in policy[prompt] for b in baseline[prompt]]
        rates.append(float(np.mean(wins)))
    return rates


_COUNTS = ("pairs", "tokens")
BY_TASK = ("loss", "reward_accuracy", "reward_margin")
"""What is also measured for each task of a mixture, as ``task/NAME/METRIC``."""


def step_means(sums: Mapping[str, float]) -> dict[str, float]:
    """A step's sums over all workers as means over its pairs, and ``task/NAME/METRIC`` as means over the task's;
    ``pairs``, ``tokens`` and ``task/NAME/pairs`` stay sums."""

    def mean(name: str, value: float) -> float:
        group, _, metric = name.rpartition("/") if name.startswith("task/") else ("", "", name)
        if metric in _COUNTS:
            return value
        return value / (sums[f"{group}/pairs" if group else "pairs"] or 1.0)

    return {name: mean(name, value) for name, value in sums.items()}
