"""Fixed choices by content: how often each pair of a source is seen, and which prompts are held out.

A choice depends on the pair or prompt alone, so it stays the same whatever else there is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_CAP, _WEIGHT = 1, 2
"""Which choice is made: the pairs that a cap keeps are unrelated to those that a weight prefers."""


def within_cap(pairs: NDArray[np.uint64], most: int | None) -> NDArray[np.bool_]:
    """Which pairs stay when at most ``most`` may, from the 64 bits of their ids; None keeps all.

    Those with the lowest hashes stay, so of ``n`` new pairs at most ``n`` take the place of old ones. Pairs with equal
    content keep their order.
    """
    kept = np.ones(len(pairs), np.bool_)
    if most is not None and len(pairs) > most:
        kept[np.argsort(_hashes(pairs, _CAP), kind="stable")[most:]] = False
    return kept


def repeats(pairs: NDArray[np.uint64], weight: float) -> NDArray[np.int64]:
    """How often each pair is seen: the whole part of the weight, and once more for about its fraction of the pairs.

    A pair's number depends on its content and the weight alone, and a larger weight never lowers it.
    """
    whole = int(weight)
    more = _hashes(pairs, _WEIGHT) < np.uint64(int((weight - whole) * 2**64))
    return whole + more.astype(np.int64)


def _hashes(ids: NDArray[np.uint64], choice: int) -> NDArray[np.uint64]:
    """New 64 bits for each id, different for each choice: the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    state = ids + np.uint64(choice * 0x9E3779B97F4A7C15 % 2**64)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def held_out(prompt_keys: NDArray[np.uint64], share: float) -> NDArray[np.bool_]:
    """Whether each prompt is held out, from the 64 bits of its key (``records.prompt_key``) and the share to hold out.

    Keys spread evenly, so those below the share of all possible keys are about that share of the prompts. A larger
    share holds out the same prompts and more. ``share`` is at least 0 and below 1.
    """
    return prompt_keys < np.uint64(int(share * 2**64))
