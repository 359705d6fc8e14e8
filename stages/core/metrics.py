"""What is measured of a training step."""

from __future__ import annotations

from collections.abc import Mapping

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
