"""Random access to tokenised shards and their reference log-probabilities, memory-mapped."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
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
        empty. Where there is one prompt only, it is the next pair's answer."""
        others = self.pairs(self._others[list(indices)].tolist())
        return [mismatched(pair, other) for pair, other in zip(self.pairs(indices), others, strict=True)]

    @cached_property
    def _prompts(self) -> NDArray[np.int64]:
        """A number for each pair that is the same for the same prompt."""
        numbers: dict[bytes, int] = {}
        found = [
            numbers.setdefault(ids.values.to_numpy().tobytes(), len(numbers))
            for chunk in self._table["prompt_ids"].chunks
            for ids in chunk
        ]
        return np.array(found, np.int64)

    @cached_property
    def _others(self) -> NDArray[np.int64]:
        """For each pair the next one, going round, that has another prompt."""
        size = len(self)
        following = (np.arange(size) + 1) % size
        changes = np.flatnonzero(self._prompts != self._prompts[following])
        if not len(changes):
            return following
        return following[changes[np.searchsorted(changes, np.arange(size)) % len(changes)]]
