"""Rows that stand more than once, found by sorting 64-bit hashes: 8 bytes per row.

Two different rows share a hash once in about 2^64 / n^2 data sets of n rows.
"""

from __future__ import annotations

from array import array

import numpy as np
from numpy.typing import NDArray

from stages.data.quality.rows import KEYS, LABELS, Row

Flags = NDArray[np.bool_]
Numbers = NDArray[np.int64]


class Duplicates:
    """The same prompt, chosen and rejected, letter by letter."""

    columns: tuple[str, ...] = ("pair_id",)

    def __init__(self) -> None:
        self._keys = array("Q")

    def see(self, row: Row) -> None:
        self._keys.append(row.pair_id)

    def first(self) -> Numbers:
        """For each row the first row that is the same, which may be itself."""
        _, index, inverse = np.unique(np.asarray(self._keys, np.uint64), return_index=True, return_inverse=True)
        return np.asarray(index[inverse], np.int64)

    def found(self) -> Flags:
        """Rows that stood before."""
        first = self.first()
        return np.asarray(first != np.arange(len(first)))


class Contradictions:
    """The same prompt and answers (but for case and white space), preferred one way here and the other way there."""

    columns: tuple[str, ...] = (*KEYS, *LABELS)

    def __init__(self) -> None:
        self._keys = array("Q")
        self._signs = array("b")

    def see(self, row: Row) -> None:
        self._keys.append(row.comparison)
        self._signs.append(row.sign)

    def groups(self) -> tuple[Numbers, Numbers, Numbers]:
        """Each row's group, and each group's rows that prefer the one answer and the other."""
        signs = np.asarray(self._signs, np.int8)
        keys, inverse = np.unique(np.asarray(self._keys, np.uint64), return_inverse=True)
        plus, minus = (np.bincount(inverse[signs == sign], minlength=len(keys)) for sign in (1, -1))
        return inverse, plus, minus

    def found(self) -> Flags:
        """Every row of a group whose rows disagree; ties do not."""
        group, plus, minus = self.groups()
        return np.asarray(((plus > 0) & (minus > 0))[group] & (np.asarray(self._signs, np.int8) != 0), np.bool_)

    def against(self) -> Numbers:
        """For each row the first row that prefers the other answer, or -1."""
        group, plus, _ = self.groups()
        signs = np.asarray(self._signs, np.int8)
        first = np.full((2, len(plus)), -1, np.int64)
        for side, sign in enumerate((1, -1)):
            rows = np.flatnonzero(signs == sign)[::-1]
            first[side, group[rows]] = rows  # the last assignment, which is the first row, stays
        other = np.where(signs > 0, first[1, group], first[0, group])
        return np.where(signs == 0, -1, other)

    def disagreement(self) -> tuple[int, float]:
        """Comparisons between rows of a group, of n rows n - 1, and how many of them disagree (expected)."""
        _, plus, minus = self.groups()
        rows = plus + minus
        plus, minus, rows = plus[rows > 1], minus[rows > 1], rows[rows > 1]
        return int((rows - 1).sum()), float((2 * plus * minus / rows).sum())
