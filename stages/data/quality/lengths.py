"""How long prompts and answers are, and whether the longer answer wins.

That annotators and judges prefer longer answers, and that training then learns the length, is shown by Singhal et al.
2023 (arXiv:2310.03716) and Park et al. 2024 (arXiv:2403.19159).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.data.quality.rows import LABELS, TEXTS, Row

Lengths = NDArray[np.int32]
Count = Callable[[list[str]], list[int]]
_WAITING = 384
_QUANTILES = (0.5, 0.9, 0.99)


class TooLong:
    """Prompt and the longer response together have more words than ``most``."""

    columns: tuple[str, ...] = TEXTS

    def __init__(self, most: int) -> None:
        self._most = most
        self._found = array("b")

    def see(self, row: Row) -> None:
        prompt, chosen, rejected = row.lengths
        self._found.append(prompt + max(chosen, rejected) > self._most)

    def found(self) -> NDArray[np.bool_]:
        return np.asarray(self._found, np.bool_)


class TooUneven:
    """One response has at least ``most`` times the words of the other (a response without words counts as one)."""

    columns: tuple[str, ...] = TEXTS

    def __init__(self, most: float) -> None:
        self._most = most
        self._found = array("b")

    def see(self, row: Row) -> None:
        _, *answers = row.lengths
        shorter, longer = max(1, min(answers)), max(answers)
        self._found.append(row.paired and longer >= self._most * shorter)

    def found(self) -> NDArray[np.bool_]:
        return np.asarray(self._found, np.bool_)


class LengthBias(NamedTuple):
    """Of pairs with a preference and answers of different lengths.

    ``share`` of them prefer the longer answer, with a 95 % interval (Wilson 1927). ``correlation`` is Pearson's, of
    the difference in length between the first and the second answer with 2p - 1, p the probability that the first is
    preferred, over both orders of every pair; both means are then 0.
    """

    pairs: int
    longer_wins: int
    share: float | None
    low: float | None
    high: float | None
    correlation: float | None


class Measured:
    """The lengths of all rows that it is shown, in words or by ``count``, which takes many texts at once."""

    columns: tuple[str, ...] = (*TEXTS, *LABELS)

    def __init__(self, count: Count | None = None) -> None:
        self._count = count
        self._waiting: list[str] = []
        self._lengths = array("i")
        self._preference = array("f")
        self.numbers = array("q")

    def see(self, row: Row) -> None:
        self.numbers.append(row.number)
        self._preference.append(row.preference if row.paired else 0.5)
        if self._count is None:
            self._lengths.extend(row.lengths)
            return
        self._waiting.extend(row.texts)
        if len(self._waiting) >= _WAITING:
            self._flush(self._count)

    def lengths(self) -> Lengths:
        """Of prompt, chosen and rejected, int32 [rows, 3]; 0 for an answer that there is not."""
        if self._count is not None and self._waiting:
            self._flush(self._count)
        return np.asarray(self._lengths, np.int32).reshape(-1, 3)

    def difference(self) -> NDArray[np.int32]:
        """By how much the preferred answer is longer, int32 [rows]; 0 for ties and single answers."""
        lengths = self.lengths()
        sign = np.sign(np.asarray(self._preference, np.float32) - 0.5).astype(np.int32)
        return np.asarray((lengths[:, 1] - lengths[:, 2]) * sign, np.int32)

    def bias(self) -> LengthBias:
        won = self.difference()
        pairs, longer = int((won != 0).sum()), int((won > 0).sum())
        if not pairs:
            return LengthBias(0, 0, None, None, None, None)
        lengths = self.lengths().astype(np.float64)
        apart = lengths[:, 1] - lengths[:, 2]
        preferred = 2.0 * np.asarray(self._preference, np.float64) - 1.0
        apart = np.where(preferred == 0, 0, apart)
        scale = float(np.sqrt((apart**2).sum() * (preferred**2).sum()))
        low, high = _wilson(longer, pairs)
        return LengthBias(pairs, longer, longer / pairs, low, high, float((apart * preferred).sum()) / scale)

    def _flush(self, count: Count) -> None:
        self._lengths.extend(count(self._waiting))
        self._waiting.clear()


def distribution(lengths: Lengths) -> dict[str, Any]:
    """Mean, quantiles and a histogram with bins that double: 0, 1, 2 to 3, 4 to 7, ..."""
    if not len(lengths):
        return {"count": 0, "mean": None, "p50": None, "p90": None, "p99": None, "max": None, "histogram": []}
    bins = np.bincount(np.frexp(lengths)[1])
    quantiles = np.quantile(lengths, _QUANTILES, method="lower").tolist()
    return {
        "count": len(lengths),
        "mean": round(float(lengths.mean()), 2),
        **{f"p{100 * share:.0f}": value for share, value in zip(_QUANTILES, quantiles, strict=True)},
        "max": int(lengths.max()),
        "histogram": [
            {"from": 2**power // 2, "to": max(0, 2**power - 1), "count": count}
            for power, count in enumerate(bins.tolist())
        ],
    }


def _wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    share = successes / trials
    middle = share + z * z / (2 * trials)
    reach = z * float(np.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)))
    scale = 1 + z * z / trials
    return (middle - reach) / scale, (middle + reach) / scale
