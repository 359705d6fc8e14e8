"""Random access to tokenised shards and their reference log-probabilities, memory-mapped."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.core.records import SHARD
from stages.core.tokens.pair import EncodedPair, mismatched
from stages.io.artifact import Artifact
from stages.io.filenames import LOGPROBS
from stages.io.filenames import SHARD as SHARD_FILE
from stages.io.tables import Rows

_SIDES = ("chosen", "rejected", "mismatched")


def encoded_pairs(table: pa.Table) -> list[EncodedPair]:
    return [EncodedPair(**row) for row in table.select(SHARD.names).to_pylist()]


class ShardData:
    """Every pair of a training set by its index. Shards are opened, and rows decoded, on demand.

    Raises:
        ValueError: the reference log-probabilities belong to other shards.
    """

    def __init__(self, shards: Artifact, reference: Artifact | None = None) -> None:
        self._rows = Rows(shards.tables(SHARD_FILE))
        self._ends: dict[int, NDArray[np.int64]] = {}
        self._logprobs: Tensor | None = None
        if reference is None:
            return
        logprobs = Rows(reference.tables(LOGPROBS)).all()
        if not logprobs["pair_id"].equals(self._rows.all()["pair_id"]):
            raise ValueError(
                f"the reference log-probabilities {reference.fingerprint[:12]} are not those of the shards "
                f"{shards.fingerprint[:12]}"
            )
        self._logprobs = torch.from_numpy(np.stack([logprobs[side].to_numpy() for side in _SIDES]))

    def __len__(self) -> int:
        return len(self._rows)

    def pairs(self, indices: Sequence[int]) -> list[EncodedPair]:
        return encoded_pairs(self._rows.take(indices))

    def reference(self, indices: Sequence[int]) -> Tensor:
        """Reference log-probabilities, float32 [3, len(indices)]: of the chosen, the rejected and the mismatched
        responses; zeros where nothing was scored."""
        return torch.zeros(len(_SIDES), len(indices)) if self._logprobs is None else self._logprobs[:, list(indices)]

    def mismatched(self, indices: Sequence[int]) -> list[EncodedPair]:
        """Each pair's prompt with the answer of the next pair, going round, that has another prompt as ``chosen``;
        ``rejected`` is empty. Nothing where all pairs have one prompt."""
        found = [self._next_other(index) for index in indices]
        others = [index for index in found if index is not None]
        if len(others) < len(found):
            return []
        pairs = zip(self.pairs(indices), self.pairs(others), strict=True)
        return [mismatched(pair, other) for pair, other in pairs]

    def _next_other(self, index: int) -> int | None:
        """The next row, going round, that has another prompt. Of the shards behind its own no more is opened than it
        takes."""
        shards, number = len(self._rows.starts) - 1, self._rows.number_of(index)
        within = index - int(self._rows.starts[number])
        prompt = self._prompt(number, within)
        for step in range(shards + 1):
            here = (number + step) % shards
            rows = self._rows.table(here).num_rows
            first = within if step == 0 else 0
            if step and rows and self._prompt(here, 0) != prompt:
                return int(self._rows.starts[here])
            ends = self._shard_ends(here)
            if (at := int(np.searchsorted(ends, first))) < len(ends):
                return int(self._rows.starts[here]) + int(ends[at]) + 1
        return None

    def _prompt(self, number: int, row: int) -> Any:
        return self._rows.table(number)["prompt_ids"][row]

    def _shard_ends(self, number: int) -> NDArray[np.int64]:
        """The rows of a shard that the one after it, in the shard, does not share its prompt with."""
        if number not in self._ends:
            self._ends[number] = np.flatnonzero(_prompt_ends(self._rows.table(number)["prompt_ids"]))
        return self._ends[number]


def _prompt_ends(prompt_ids: pa.ChunkedArray) -> NDArray[np.bool_]:
    """For each row whether there is one after it that has another prompt. The tokens are compared where they lie, as
    bytes: a million prompts take less than a second and hardly any memory."""
    ends = np.zeros(len(prompt_ids), np.bool_)
    before = None
    row = 0
    for chunk in prompt_ids.chunks:
        tokens = chunk.values.to_numpy()
        data = memoryview(tokens.view(np.uint8))
        bounds = (chunk.offsets.to_numpy().astype(np.int64) * tokens.itemsize).tolist()
        for start, stop in pairwise(bounds):
            prompt = data[start:stop]
            if before is not None:
                ends[row - 1] = prompt != before
            before = prompt
            row += 1
    return ends
