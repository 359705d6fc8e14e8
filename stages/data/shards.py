"""Random access to tokenised shards and their reference log-probabilities, memory-mapped."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.core.records import SHARD
from stages.core.tokens.pair import EncodedPair, mismatched
from stages.io.filenames import shard_files
from stages.io.tables import read_table

_SIDES = ("chosen", "rejected", "mismatched")


def encoded_pairs(table: pa.Table) -> list[EncodedPair]:
    return [EncodedPair(**row) for row in table.select(SHARD.names).to_pylist()]


class ShardData:
    """Every pair of a training set by its index. Rows are decoded on demand.

    Raises:
        ValueError: the reference log-probabilities belong to other shards.
    """

    def __init__(self, shards: Path, reference: Path | None = None) -> None:
        self._table = pa.concat_tables(read_table(file) for file in shard_files(shards))
        self._logprobs = torch.zeros(len(_SIDES), self._table.num_rows)
        if reference is None:
            return
        logprobs = pa.concat_tables(read_table(file) for file in shard_files(reference))
        if not logprobs["pair_id"].equals(self._table["pair_id"]):
            raise ValueError(f"the reference log-probabilities in {reference} are not those of the shards in {shards}")
        self._logprobs = torch.from_numpy(np.stack([logprobs[side].to_numpy() for side in _SIDES]))

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def pairs(self, indices: Sequence[int]) -> list[EncodedPair]:
        return encoded_pairs(self._table.take(pa.array(indices, pa.int64())))

    def reference(self, indices: Sequence[int]) -> Tensor:
        """Reference log-probabilities, float32 [3, len(indices)]: of the chosen, the rejected and the mismatched
        responses; zeros where nothing was scored."""
        return self._logprobs[:, list(indices)]

    def mismatched(self, indices: Sequence[int]) -> list[EncodedPair]:
        """Each pair's prompt with the answer of the next pair that has another prompt as ``chosen``; ``rejected`` is
        empty. Nothing where all pairs have one prompt."""
        if not len(self._others):
            return []
        others = self.pairs(self._others[list(indices)].tolist())
        return [mismatched(pair, other) for pair, other in zip(self.pairs(indices), others, strict=True)]

    @cached_property
    def _others(self) -> NDArray[np.int64]:
        """For each pair the next one, going round, that has another prompt; empty where there is none."""
        last = np.flatnonzero(_prompt_ends(self._table["prompt_ids"]))
        if not len(last):
            return last
        size = len(self)
        return (last[np.searchsorted(last, np.arange(size)) % len(last)] + 1) % size


def _prompt_ends(prompt_ids: pa.ChunkedArray) -> NDArray[np.bool_]:
    """For each row whether the one after it, going round, has another prompt. The tokens are compared where they lie,
    as bytes: a million prompts take less than a second and hardly any memory."""
    ends = np.zeros(len(prompt_ids), np.bool_)
    before = first = None
    row = 0
    for chunk in prompt_ids.chunks:
        tokens = chunk.values.to_numpy()
        data = memoryview(tokens.view(np.uint8))
        bounds = (chunk.offsets.to_numpy().astype(np.int64) * tokens.itemsize).tolist()
        for start, stop in pairwise(bounds):
            prompt = data[start:stop]
            if before is None:
                first = prompt
            else:
                ends[row - 1] = prompt != before
            before = prompt
            row += 1
    if row:
        ends[-1] = before != first
    return ends
