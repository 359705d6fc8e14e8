"""Rows that cannot be used, each with its place and reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, ClassVar

import pyarrow as pa

from stages.core.errors import RowError
from stages.io.filenames import QUARANTINE
from stages.readers import Place

_EXCERPT = 200
REASONS = 50
"""Reasons that are counted one by one."""
OTHER_REASONS = "other reasons"


class Quarantine:
    """The rejected rows, written next to the good ones as they come: where, which field, why, and how the row begins.

    ``summary`` has their number and the totals of the commonest reasons. Without rows there is no file.
    """

    SCHEMA: ClassVar = [(name, pa.string()) for name in ("place", "field", "reason", "excerpt")]

    def __init__(self, folder: Path) -> None:
        self._path = folder / QUARANTINE
        self._reasons: Counter[str] = Counter()
        self._file: IO[str] | None = None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    @staticmethod
    def row(place: str, error: RowError, excerpt: str) -> dict[str, str]:
        return {"place": place, "field": error.field, "reason": error.reason, "excerpt": excerpt[:_EXCERPT]}

    def add(self, row: Mapping[str, str]) -> None:
        reason = f"{row['field']}: {row['reason']}" if row["field"] else row["reason"]
        if reason not in self._reasons and len(self._reasons) >= REASONS:
            reason = OTHER_REASONS
        self._reasons[reason] += 1
        place = Place.parse(row["place"])
        where = {name: value for name, value in asdict(place).items() if value is not None}
        rest = {name: row[name] for name in ("field", "reason", "excerpt")}
        if self._file is None:
            self._file = self._path.open("w", encoding="utf-8")
        self._file.write(json.dumps({**where, **rest}, ensure_ascii=False) + "\n")

    @property
    def summary(self) -> dict[str, Any]:
        return {"quarantined": self._reasons.total(), "quarantine_reasons": dict(self._reasons.most_common())}


def fewest_reasons(reasons: Mapping[str, int]) -> dict[str, int]:
    """The commonest reasons one by one, and the others together."""
    own = Counter({reason: count for reason, count in reasons.items() if reason != OTHER_REASONS})
    kept = dict(own.most_common(REASONS))
    return {**kept, OTHER_REASONS: sum(reasons.values()) - sum(kept.values())}
