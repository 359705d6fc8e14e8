"""Random access to tokenised shards and the reference log-probabilities beside them, memory-mapped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from stages.core.records import SHARD
from stages.core.templates import EncodedPair
from stages.layout import shard_files
from stages.tables import read_table


def encoded_pairs(table: pa.Table) -> list[EncodedPair]:
    return [EncodedPair(**row) for row in table.select(SHARD.names).to_pylist()]


class ShardData:
    """Every pair of a training set by its index. Rows are decoded when asked for.

    Raises:
        ValueError: the reference log-probabilities belong to other shards.
    """

    def __init__(self, shards: Path, reference: Path) -> None:
        self._table = pa.concat_tables(read_table(file) for file in shard_files(shards))
        logprobs = pa.concat_tables(read_table(file) for file in shard_files(reference))
        if not logprobs["pair_id"].equals(self._table["pair_id"]):
            raise ValueError(f"the reference log-probabilities in {reference} are not those of the shards in {shards}")
        self._chosen = torch.from_numpy(logprobs["chosen"].to_numpy().copy())
        self._rejected = torch.from_numpy(logprobs["rejected"].to_numpy().copy())

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def pairs(self, indices: Sequence[int]) -> list[EncodedPair]:
        return encoded_pairs(self._table.take(pa.array(indices, pa.int64())))

    def reference(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Reference log-probabilities of chosen and rejected, float32 [len(indices)] each."""
        index = torch.as_tensor(list(indices))
        return self._chosen[index], self._rejected[index]
