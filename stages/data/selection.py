"""What is known about every pair while the pairs to use are chosen, as columns of a few bytes per pair."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.core.records import SELECTION

FILTERS, HELDOUT_PROMPTS, TOO_FEW_VOTES, TIES, ZERO_WEIGHT, MAX_PAIRS, WEIGHT, SEEN_BEFORE = range(1, 9)
"""Why a pair is left out; 0 is for pairs that are used."""
REASONS = (
    "", "filters", "heldout_prompts", "too_few_votes", "ties", "zero_weight", "max_pairs", "weight", "seen_before",
)  # fmt: skip

_SLICE = 65536


class Pairs:
    """The pairs of all files in their order, 30 bytes each.

    ``files`` are the files' sizes, ``source_of`` the source of each. ``number`` has the 64 bits of the pairs' ids,
    ``reason`` why a pair is left out, ``repeats`` how often it is seen if it is trained on.
    """

    def __init__(self, files: Sequence[int], source_of: Sequence[int]) -> None:
        size = sum(files)
        self.source_of = tuple(source_of)
        self.starts: NDArray[np.int64] = np.cumsum([0, *files])
        self.number = np.zeros(size, np.uint64)
        self.probability = np.zeros(size, np.float64)
        self.weight = np.ones(size, np.float64)
        self.heldout = np.zeros(size, np.bool_)
        self.reason = np.zeros(size, np.uint8)
        self.repeats = np.ones(size, np.int32)

    def __len__(self) -> int:
        return len(self.reason)

    def of_file(self, file: int) -> slice:
        return slice(int(self.starts[file]), int(self.starts[file + 1]))

    def of_source(self, source: int) -> NDArray[np.int64]:
        """Places of the pairs of a source's files, in order."""
        slices = [self.of_file(file) for file, own in enumerate(self.source_of) if own == source]
        return np.concatenate([np.zeros(0, np.int64), *(np.arange(each.start, each.stop) for each in slices)])

    def leave_out(self, places: NDArray[np.int64], reason: int) -> None:
        """Pairs already left out keep their first reason."""
        self.reason[places[self.reason[places] == 0]] = reason

    def count(self, places: slice | NDArray[np.int64] = slice(None)) -> dict[str, Any]:
        """Pairs in all; those that are trained on, each once and as often as it is seen; those that are held out; and
        those that are left out, by reason."""
        reason, heldout = self.reason[places], self.heldout[places]
        trained = (reason == 0) & ~heldout
        by_reason = np.bincount(reason, minlength=len(REASONS)).tolist()
        return {
            "pairs": len(reason),
            "training": int(trained.sum()),
            "seen": int(self.repeats[places][trained].sum()),
            "heldout": int(((reason == 0) & heldout).sum()),
            "dropped": {name: count for name, count in zip(REASONS[1:], by_reason[1:], strict=True) if count},
        }

    def selected(self, tasks: Sequence[str]) -> Iterator[pa.Table]:
        """The rows of ``SELECTION``; ``tasks`` has the task of each source."""
        for file, source in enumerate(self.source_of):
            own = self.of_file(file)
            for start in range(own.start, own.stop, _SLICE):
                here = slice(start, min(start + _SLICE, own.stop))
                used = np.where(self.reason[here] == 0, self.repeats[here], 0)
                places = np.repeat(np.arange(here.start, here.stop), used)
                columns = [
                    pa.repeat(pa.scalar(file, pa.int32()), len(places)),
                    pa.array(places - own.start),
                    pa.array(self.probability[places]),
                    pa.array(self.weight[places]),
                    pa.repeat(pa.scalar(tasks[source]), len(places)),
                    pa.array(self.heldout[places]),
                ]
                yield pa.table(columns, schema=SELECTION)
