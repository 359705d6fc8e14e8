"""How often a preference label is wrong, as far as the data itself can tell.

Wherever the same comparison was made twice, the two labels can disagree. If each label is wrong with probability e,
independently, two of them disagree with probability d = 2e(1 - e), so e = (1 - sqrt(1 - 2d)) / 2 (the annotator model
of Dawid and Skene 1979, with two answers and one error rate). A group of n labels counts as n - 1 comparisons.
"""

from __future__ import annotations

import math
from array import array
from typing import NamedTuple

from stages.data.quality.rows import Row


class Repeats(NamedTuple):
    """Comparisons of two labels for the same thing, and how many of them disagree."""

    comparisons: int
    disagreeing: float


class Votes:
    """What the annotators of each pair say of one another. Abstentions do not count; a tie is half a vote."""

    columns: tuple[str, ...] = ("votes",)

    def __init__(self) -> None:
        self.rows = 0
        self.split = array("q")
        """Numbers of the rows whose annotators prefer different answers."""
        self._comparisons = 0
        self._disagreeing = 0.0

    def see(self, row: Row) -> None:
        votes = row.votes
        self.rows += bool(votes)
        if len(votes) < 2:
            return
        if min(votes) < 0.5 < max(votes):
            self.split.append(row.number)
        apart = sum(abs(a - b) for index, a in enumerate(votes) for b in votes[:index])
        self._comparisons += len(votes) - 1
        self._disagreeing += 2 * apart / len(votes)  # the mean over n(n - 1)/2 pairs, n - 1 times

    def repeats(self) -> Repeats:
        return Repeats(self._comparisons, self._disagreeing)


def error_rate(parts: list[Repeats]) -> float | None:
    """The probability that a label is wrong, from 0 to 1/2; None where nothing was compared."""
    comparisons = sum(part.comparisons for part in parts)
    if not comparisons:
        return None
    disagreement = sum(part.disagreeing for part in parts) / comparisons
    return (1 - math.sqrt(max(0.0, 1 - 2 * disagreement))) / 2
