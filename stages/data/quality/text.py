"""Words, and 64-bit hashes of words and n-grams that are the same on every machine."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_ONE_BY_ONE = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Thai, kana and Chinese characters: written without spaces, so that each character counts as a word."""
_WORD = re.compile(rf"[{_ONE_BY_ONE}]|[^\W{_ONE_BY_ONE}]+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no information is lost modulo 2^64
_CACHED = 1 << 16
SHINGLE = 5
"""Words a shingle."""


def words(text: str) -> list[str]:
    """The words of a text without case and punctuation; of a text that has none, what white space parts."""
    return _WORD.findall(text.casefold()) or text.split()


def digest(text: str) -> int:
    """64 bits that depend on the text alone (Python's own ``hash`` differs from run to run)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


_hash_of = lru_cache(maxsize=_CACHED)(digest)


def ngrams(tokens: Sequence[str], n: int) -> Hashes:
    """Hashes of all runs of ``n`` words, uint64 [max(0, len(tokens) - n + 1)], in the order of the text."""
    hashes = np.fromiter(map(_hash_of, tokens), np.uint64, len(tokens))
    runs = max(0, len(tokens) - n + 1)
    total = np.zeros(runs, np.uint64)
    for offset in range(n):
        total = total * _MULTIPLIER + hashes[offset : offset + runs]
    return total


def shingles(tokens: Sequence[str], n: int = SHINGLE) -> Hashes:
    """The set of the n-grams of a text's words, sorted; a shorter text has one, itself, and an empty text none."""
    return np.unique(ngrams(tokens, min(n, len(tokens)))) if tokens else np.zeros(0, np.uint64)


def jaccard(a: Hashes, b: Hashes) -> float:
    """|a and b| / |a or b| of two sorted sets; 1 for two empty ones."""
    if not len(a) and not len(b):
        return 1.0
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)


def cut(text: str, length: int) -> str:
    """At most ``length`` characters on one line; characters that are not printed are replaced."""
    line = " ".join(text[: 4 * length].split())
    short = line if len(line) <= length else line[: length - 1].rstrip() + "…"
    return "".join(character if character.isprintable() else "�" for character in short)
