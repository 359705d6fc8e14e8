"""Pairs with nearly the same words: MinHash and banding find candidates, their n-grams decide.

MinHash (Broder 1997, "On the resemblance and containment of documents"): the smallest hash of a set under a random
permutation is that of another set with probability equal to their Jaccard similarity s. Signatures of ``_PERMUTATIONS``
such values are cut into b bands of r; two rows share a band with probability 1 - (1 - s^r)^b (Leskovec, Rajaraman and
Ullman, "Mining of Massive Datasets", 3.4). Of a signature only one 32-bit hash per band is kept, and later the earlier
row with the same hash, so that a row takes 4b bytes.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

from stages.data.quality.rows import LABELS, TEXTS, Records, Row
from stages.data.quality.text import SHINGLE, Hashes, jaccard, shingles

_PERMUTATIONS = 64
_SEED = 1
_RECALL = 0.95
_STEPS = 16
"""How far back a band is followed, and so how much work a row can make."""
_COMPARED = 8
"""Candidates that a row is compared with, those with the most bands in common first."""
_CACHED = 4096
_WAITING = 1000
"""Rows whose signatures are made in one call."""
_MARKS = ("", " ", " ")
"""Set the n-grams of answers apart from those of prompts."""


class Link(NamedTuple):
    """``row`` is nearly the same as the earlier row ``first``; ``flipped`` if it prefers the other answer."""

    row: int
    first: int
    flipped: bool


class _Sets(NamedTuple):
    prompt: Hashes
    chosen: Hashes
    rejected: Hashes
    sign: int


def bands(similarity: float) -> tuple[int, int]:
    """The most selective (b, r) that still finds ``_RECALL`` of the pairs that are just similar enough."""
    for rows in range(_PERMUTATIONS, 1, -1):
        count = _PERMUTATIONS // rows
        if 1 - (1 - similarity**rows) ** count >= _RECALL:
            return count, rows
    return _PERMUTATIONS, 1


class NearDuplicates:
    """Pairs of which prompt, chosen and rejected each have a Jaccard similarity of word 5-grams of at least
    ``similarity`` to those of an earlier pair that is not itself such a repetition."""

    columns: tuple[str, ...] = (*TEXTS, *LABELS)

    def __init__(self, similarity: float) -> None:
        self._similarity = similarity
        self._count, self._rows = bands(similarity)
        self._numbers = array("q")
        self._bands = array("I")
        self._waiting: list[list[str]] = []
        self._multipliers = (np.arange(self._rows, dtype=np.uint64) * np.uint64(2) + np.uint64(1)) * np.uint64(
            0x9E3779B97F4A7C15
        )

    def see(self, row: Row) -> None:
        self._numbers.append(row.number)
        marked = zip(row.words, _MARKS, strict=True)
        self._waiting.append([gram for words, mark in marked for gram in _grams(words, mark)])
        if len(self._waiting) == _WAITING:
            self._flush()

    def _flush(self) -> None:
        """Keep the bands of the rows that wait."""
        if not self._waiting:
            return
        made = RMinHash.digest_matrix_from_token_sets(self._waiting, _PERMUTATIONS, _SEED)
        signatures = np.asarray(made.to_rows(), np.uint64)[:, : self._count * self._rows]
        grid = signatures.reshape(-1, self._count, self._rows)
        keys = (grid * self._multipliers).sum(axis=2, dtype=np.uint64) >> np.uint64(32)
        self._bands.frombytes(keys.astype(np.uint32).tobytes())
        self._waiting.clear()

    def links(self, records: Records, progress: Callable[[int, int, str], None]) -> list[Link]:
        """Every row that is nearly the same as an earlier one, in order."""
        self._flush()
        numbers = np.asarray(self._numbers, np.int64)
        before = self._before()
        repeated = np.zeros(len(numbers), np.bool_)
        sets = lru_cache(maxsize=_CACHED)(lambda number: _sets(records.row(number)))
        links = []
        alike = np.flatnonzero((before >= 0).any(axis=1)).tolist()
        for done, index in enumerate(alike):
            here = sets(int(numbers[index]))
            found = None
            for other in _candidates(index, before, repeated):
                first = int(numbers[other])
                relation = _relation(here, sets(first), self._similarity)
                if relation is not None and (found is None or not relation):
                    found = Link(int(numbers[index]), first, relation)
                    if not relation:
                        break
            if found:
                links.append(found)
                repeated[index] = not found.flipped
            if done % 1000 == 0:
                progress(done, len(alike), "comparing what looks alike")
        return links

    def _before(self) -> NDArray[np.int32]:
        """For each row and band the nearest earlier row with the same hash there, or -1, int32 [rows, bands]."""
        keys = np.asarray(self._bands, np.uint32).reshape(-1, self._count)
        before = np.full(keys.shape, -1, np.int32)
        for band in range(self._count):
            order = np.argsort(keys[:, band], kind="stable")
            same = keys[order[1:], band] == keys[order[:-1], band]
            before[order[1:][same], band] = order[:-1][same]
        return before


def _candidates(index: int, before: NDArray[np.int32], repeated: NDArray[np.bool_]) -> Iterator[int]:
    """Earlier rows that share bands with a row: most bands first, then the earliest."""
    shared: Counter[int] = Counter()
    for band in range(before.shape[1]):
        other = index
        for _ in range(_STEPS):
            other = int(before[other, band])
            if other < 0:
                break
            if not repeated[other]:
                shared[other] += 1
    yield from sorted(shared, key=lambda other: (-shared[other], other))[:_COMPARED]


def _relation(a: _Sets, b: _Sets, least: float) -> bool | None:
    """False if two rows are nearly the same, True if they are but for the preference, None if they are not."""
    if jaccard(a.prompt, b.prompt) < least:
        return None
    if jaccard(a.chosen, b.chosen) >= least and jaccard(a.rejected, b.rejected) >= least:
        return a.sign * b.sign < 0
    if jaccard(a.chosen, b.rejected) >= least and jaccard(a.rejected, b.chosen) >= least:
        return None if a.sign * b.sign == 0 else a.sign * b.sign > 0
    return None


def _sets(row: Row) -> _Sets:
    prompt, chosen, rejected = map(shingles, row.words)
    return _Sets(prompt, chosen, rejected, int(np.sign(row.preference - 0.5)))


def _grams(words: list[str], mark: str) -> list[str]:
    """What ``shingles`` hashes, as text."""
    runs = (words[start:] for start in range(min(SHINGLE, len(words))))
    return [mark + " ".join(run) for run in zip(*runs, strict=False)]
