"""Rows that cannot be used, each with its place and reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from stages.core.errors import RowError
from stages.io.filenames import QUARANTINE
from stages.readers import Place

_EXCERPT = 200
_REASONS = 50
"""Reasons that are counted one by one."""
OTHER_REASONS = "other reasons"


class Quarantine:
    """The rejected rows, written next to the good ones as they come: where, which field, why, and how the row begins.

    ``summary`` has their number and the totals of the commonest reasons.
    """

    SCHEMA: ClassVar = [(name, pa.string()) for name in ("place", "field", "reason", "excerpt")]

    def __init__(self, folder: Path) -> None:
        self._path = folder / QUARANTINE
        self._reasons: Counter[str] = Counter()

    def __enter__(self) -> Quarantine:
        self._file = self._path.open("w", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @staticmethod
    def row(place: str, error: RowError, excerpt: str) -> dict[str, str]:
        return {"place": place, "field": error.field, "reason": error.reason, "excerpt": excerpt[:_EXCERPT]}

    def add(self, row: Mapping[str, str]) -> None:
        reason = f"{row['field']}: {row['reason']}" if row["field"] else row["reason"]
        if reason not in self._reasons and len(self._reasons) >= _REASONS:
            reason = OTHER_REASONS
        self._reasons[reason] += 1
        place = Place.parse(row["place"])
        where = {name: value for name, value in asdict(place).items() if value is not None}
        rest = {name: row[name] for name in ("field", "reason", "excerpt")}
        self._file.write(json.dumps({**where, **rest}, ensure_ascii=False) + "\n")

    def add_table(self, table: pa.Table) -> None:
        for row in table.select([name for name, _ in self.SCHEMA]).to_pylist():
            self.add(row)

    @property
    def summary(self) -> dict[str, Any]:
        return {"quarantined": self._reasons.total(), "quarantine_reasons": dict(self._reasons.most_common())}
