"""How well judges agree: with people, with each other, beyond chance. ``biases`` asks what else their verdicts follow.

A verdict on two answers is 1 (the first is better), -1 (the second) or 0 (a tie). Everything here but the weighted
measures takes any other labels too.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np

from stages.core.bootstrap import Floats

Distance = Literal["nominal", "linear", "quadratic"]
"""How far apart two labels are: all alike; by their difference; by its square (both as numbers)."""


def accuracy(judged: Sequence[Hashable], truth: Sequence[Hashable]) -> float:
    """Share of the items, (items,) each, with the same label. A tie is a label: saying 1 where people tie is wrong.

    Raises:
        ValueError: different numbers of items, or none.
    """
    _check(judged, truth)
    return sum(one == two for one, two in zip(judged, truth, strict=True)) / len(judged)


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable], distance: Distance = "nominal") -> float:
    """Agreement of two judges beyond chance: 1 - observed / expected disagreement; 1 is perfect, 0 is chance.

    Cohen 1960, doi 10.1177/001316446002000104; weighted by a distance, Cohen 1968, doi 10.1037/h0026256. Chance means
    that each judge keeps their own shares of labels and says them at random. With verdicts of 1, 0 and -1, "linear"
    counts a tie against a win as half of what it counts a win against a loss.

    NaN where both judges say one and the same label of everything: there is no chance to be better than.

    Raises:
        ValueError: different numbers of items, or none; a label that is no number, for a distance of numbers.
    """
    _check(first, second)
    labels = list(dict.fromkeys([*first, *second]))
    numbers = {label: number for number, label in enumerate(labels)}
    table = np.zeros((len(labels), len(labels)))
    for one, two in zip(first, second, strict=True):
        table[numbers[one], numbers[two]] += 1
    table /= table.sum()
    apart = _distances(labels, distance)
    expected = float((np.outer(table.sum(axis=1), table.sum(axis=0)) * apart).sum())
    return 1 - float((table * apart).sum()) / expected if expected else float("nan")


def krippendorff_alpha(
    judges: Sequence[Sequence[Hashable | None]], distance: Distance = "nominal", times: Sequence[int] | None = None
) -> float:
    """Agreement of any number of judges beyond chance: 1 - observed / expected disagreement.

    Krippendorff 2011, "Computing Krippendorff's alpha-reliability" (nominal; "quadratic" is his interval metric).
    Judges may leave items out. Items with fewer than two labels say nothing about agreement and do not count. Chance
    means that labels are dealt out at random from all that were given, by whomever.

    NaN where no item has two labels, or only one label was ever given.

    Args:
        judges: (judges, items): a label, or None where a judge gave none.
        times: (items,): how often each item stands for; by default once.

    Raises:
        ValueError: judges with different numbers of items; a label that is no number, for a distance of numbers.
    """
    if len({len(row) for row in judges}) > 1:
        raise ValueError("every judge needs the same items; None stands for a label that is missing")
    labels = list(dict.fromkeys(label for row in judges for label in row if label is not None))
    if not labels:
        return float("nan")
    numbers = {label: number for number, label in enumerate(labels)}
    units = np.zeros((len(judges[0]), len(labels)))  # how many judges gave each label to each item
    for row in judges:
        for item, label in enumerate(row):
            if label is not None:
                units[item, numbers[label]] += 1
    known = units.sum(axis=1) >= 2
    weights = np.ones(len(units)) if times is None else np.asarray(times, dtype=np.float64)
    units, weights = units[known], weights[known]
    apart = _distances(labels, distance)
    total = weights @ units
    # No label is paired with itself; as its distance to itself is 0, pairs of an item's labels need no correction here.
    pairs = ((units @ apart) * units).sum(axis=1) / np.maximum(units.sum(axis=1) - 1, 1)
    expected = float(total @ apart @ total)
    return 1 - (total.sum() - 1) * float(weights @ pairs) / expected if expected else float("nan")


def _distances(labels: Sequence[Hashable], distance: Distance) -> Floats:
    if distance == "nominal":
        return 1.0 - np.eye(len(labels))
    if not all(isinstance(label, int | float | np.number) for label in labels):
        raise ValueError(f"a {distance} distance needs labels that are numbers")
    values = np.array(labels, dtype=np.float64)
    apart: Floats = np.abs(values[:, None] - values[None, :])
    return apart if distance == "linear" else apart**2


def _check(first: Sequence[Hashable], second: Sequence[Hashable]) -> None:
    if len(first) != len(second) or not len(first):
        raise ValueError(f"agreement needs the same items, at least one, not {len(first)} and {len(second)}")
