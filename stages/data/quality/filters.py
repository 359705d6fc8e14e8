"""What becomes of pairs that a detector finds: dropped, or their weight multiplied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stages.data.config import Action, FilterConfig
from stages.data.quality.contamination import Contamination
from stages.data.quality.exact import Contradictions, Duplicates
from stages.data.quality.languages import Languages
from stages.data.quality.lengths import TooLong, TooUneven
from stages.data.quality.near import NearDuplicates
from stages.data.quality.rows import Records, Row
from stages.io.artifact import Table

Flags = NDArray[np.bool_]
Progress = Callable[[int, int, str], None]
_EVERY = 10_000


class Detector(Protocol):
    """Is shown every row in order, with at least ``columns``."""

    columns: tuple[str, ...]

    def see(self, row: Row) -> None: ...


class Finder(Detector, Protocol):
    """A detector that says for every row that it saw whether it is one of those that it looks for."""

    def found(self) -> Flags: ...


def quiet(*_: object) -> None:
    """Progress that nobody looks at."""


@dataclass(frozen=True)
class Found:
    """``factors`` has a float32 array per file, one number per row: 0 for a dropped pair, 1 for one that is kept,
    between for one whose weight is multiplied.

    ``dropped`` counts each dropped row once, under the first reason (in the order of ``FilterConfig``);
    ``down_weighted`` counts a row that stays under every reason that lowered its weight.
    """

    factors: list[NDArray[np.float32]]
    dropped: dict[str, int]
    down_weighted: dict[str, int]


class Filters:
    """The filters of a configuration; those that are off cost nothing.

    Raises:
        StageError: a language is not known.
    """

    def __init__(self, config: FilterConfig, heldout: Sequence[Table] = ()) -> None:
        self._config = config
        self._heldout = heldout
        if config.languages:
            Languages(config.languages)  # a mistake is said before the work

    def examine(
        self, files: Sequence[Sequence[Table]], progress: Progress = quiet, left_out: Flags | None = None
    ) -> Found:
        """Go over all rows of records files once, and for near duplicates again over those that look alike.

        Rows that are ``left_out`` already are looked at like the others, which may resemble them, but are not counted;
        their factor is 0."""
        records = Records(files)
        detectors = self._detectors()
        look(records, [detector for _, _, detector in detectors], progress)
        factors = np.ones(len(records), np.float32)
        if left_out is not None:
            factors[left_out] = 0
        reasons = [(name, action, _flags(detector, records, progress)) for name, action, detector in detectors]
        dropped = {}
        for name, action, flags in reasons:
            if action == "drop":
                dropped[name] = int((flags & (factors > 0)).sum())
                factors[flags] = 0
        down_weighted = {}
        for name, action, flags in reasons:
            if action != "drop":
                down_weighted[name] = int((flags & (factors > 0)).sum())
                factors[flags] *= np.float32(action)
        parts = np.split(factors, np.cumsum(records.sizes))[:-1]  # the last is what is left, nothing
        return Found(parts, dropped, down_weighted)

    def _detectors(self) -> list[tuple[str, Action, Finder | NearDuplicates]]:
        config = self._config
        found: list[tuple[str, Action, Finder | NearDuplicates]] = []
        if config.duplicates != "keep":
            found.append(("duplicates", config.duplicates, Duplicates()))
        if config.near_duplicates != "keep":
            found.append(("near_duplicates", config.near_duplicates, NearDuplicates(config.similarity)))
        if config.contradictory != "keep":
            found.append(("contradictory", config.contradictory, Contradictions()))
        if config.contaminated != "keep" and self._heldout:
            found.append(("contaminated", config.contaminated, Contamination(self._heldout, config.ngram)))
        if config.languages:
            found.append(("languages", "drop", Languages(config.languages)))
        if config.max_words is not None:
            found.append(("max_words", "drop", TooLong(config.max_words)))
        if config.max_length_ratio is not None:
            found.append(("max_length_ratio", "drop", TooUneven(config.max_length_ratio)))
        return found


def look(records: Records, detectors: Sequence[Detector], progress: Progress) -> None:
    """Show every row to every detector."""
    columns = {column for detector in detectors for column in detector.columns}
    if not columns:
        return
    for row in records.stream(columns):
        for detector in detectors:
            detector.see(row)
        if row.number % _EVERY == 0:
            progress(row.number, len(records), "looking")


def _flags(detector: Finder | NearDuplicates, records: Records, progress: Progress) -> Flags:
    if isinstance(detector, NearDuplicates):
        flags = np.zeros(len(records), np.bool_)
        flags[[link.row for link in detector.links(records, progress) if not link.flipped]] = True
        return flags
    return detector.found()
