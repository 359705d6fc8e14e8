"""How many rows there are of what."""

from __future__ import annotations

from array import array
from collections import Counter
from typing import Any

import numpy as np

from stages.data.quality.rows import KEYS, Records, Row

_NAMES = 1000
OTHERS = "(others)"
NO_KIND = ""


class Counts:
    """Rows by file and by kind, pairs and single answers, and different prompts."""

    columns: tuple[str, ...] = ("source", "kind", *KEYS)

    def __init__(self, records: Records) -> None:
        self._records = records
        self._files: dict[tuple[int, str], Counter[str]] = {}
        self._prompts = array("Q")
        self.kinds: Counter[str] = Counter()
        self.paired = 0

    def see(self, row: Row) -> None:
        key = (self._records.file_of(row.number), row.file)
        if key not in self._files and len(self._files) >= _NAMES:
            key = (-1, OTHERS)
        counts = self._files.setdefault(key, Counter())
        counts["rows"] += 1
        counts["paired"] += row.paired
        self.paired += row.paired
        kind = row.values["kind"] or NO_KIND
        self.kinds[kind if kind in self.kinds or len(self.kinds) < _NAMES else OTHERS] += 1
        self._prompts.append(int(row.prompt_key, 16))

    def prompts(self) -> int:
        """Prompts that differ in more than case and white space."""
        return len(np.unique(np.asarray(self._prompts, np.uint64)))

    def files(self, tasks: tuple[str, ...]) -> list[dict[str, Any]]:
        """One entry per file, in the order of their first rows."""
        return [
            {
                "input": index,
                "file": name,
                "task": tasks[index] if 0 <= index < len(tasks) else "",
                "rows": counts["rows"],
                "paired": counts["paired"],
                "unpaired": counts["rows"] - counts["paired"],
            }
            for (index, name), counts in self._files.items()
        ]


class SameAnswers:
    """Chosen and rejected are the same but for case and white space."""

    columns: tuple[str, ...] = KEYS

    def __init__(self) -> None:
        self._found = array("b")

    def see(self, row: Row) -> None:
        chosen, rejected = row.answer_keys
        self._found.append(chosen == rejected)

    def found(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        return np.asarray(self._found, np.bool_)
