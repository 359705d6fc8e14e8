"""How many of a source's rows cannot be used, whichever stage refused them, and when that is too many."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from stages.base import StageError

_NAMED = 3


class BadRows(NamedTuple):
    """``read`` rows of a source, ``bad`` of them refused so far, and why."""

    read: int
    bad: int
    reasons: Mapping[str, int]

    def summary(self) -> dict[str, Any]:
        """As a stage's summary holds it."""
        return {"read": self.read, "bad": self.bad, "bad_reasons": dict(self.reasons)}


def after(earlier: Mapping[str, Any], rows: int, quarantine: Mapping[str, Any]) -> BadRows:
    """What has been refused when a stage refused some more.

    Args:
        earlier: summary of the stage before, which counts what it refused itself.
        rows: how many pairs that stage handed on. A row may give several: refused pairs count as that part of the rows
            which they are of the pairs.
        quarantine: the stage's own part of its summary.
    """
    reasons = Counter(earlier.get("quarantine_reasons", {})) + Counter(quarantine["quarantine_reasons"])
    before = earlier.get("quarantined", 0)
    read = earlier.get("read", rows)
    refused = quarantine["quarantined"] * min(1.0, (read - before) / max(1, rows))
    return BadRows(read, before + math.ceil(refused), dict(reasons.most_common()))


def refuse_too_many(name: str, parts: Iterable[BadRows], most: float) -> None:
    """Raises:
    StageError: more than the share ``most`` of these rows are bad; it names the commonest reasons.
    """
    read = bad = 0
    reasons: Counter[str] = Counter()
    for part in parts:
        read, bad = read + part.read, bad + part.bad
        reasons.update(part.reasons)
    if bad <= most * read:
        return
    commonest = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common(_NAMED))
    raise StageError(
        f"{name}: {bad} of {read} rows are in quarantine, more than max_bad_share {most:g} allows; the commonest "
        f"reasons: {commonest}. Mend the rows, or raise data.max_bad_share"
    )
