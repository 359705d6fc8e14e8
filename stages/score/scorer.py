"""Makes parts with the log-probabilities of pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import torch

from stages.core.records import LOGPROBS
from stages.data.shards import ShardData
from stages.io.allocator import keep_freed_memory
from stages.io.artifact import Artifact
from stages.io.filenames import LOGPROBS as LOGPROBS_FILE
from stages.io.output import PartWriter
from stages.io.parts import assigned_cpus
from stages.score.config import ReferenceConfig
from stages.score.model import ScoringModel

_SLICE = 64
"""Pairs that are decoded at a time."""


class Scorer:
    """Holds the reference model; makes log-probabilities (float32 sums) of slices of pairs."""

    def __init__(self, config: ReferenceConfig, policy: Artifact, shards: Artifact) -> None:
        keep_freed_memory()
        torch.set_num_threads(assigned_cpus())
        self.config = config
        self.data = ShardData(shards)
        self.score = ScoringModel(config, policy).score

    def __call__(self, task: Mapping[str, Any], part: PartWriter) -> None:
        starts = range(task["start"], task["stop"], _SLICE)
        found = [self._scored(range(start, min(start + _SLICE, task["stop"])), part) for start in starts]
        part.table(LOGPROBS_FILE, found, LOGPROBS)

    def _scored(self, indices: range, part: PartWriter) -> pa.Table:
        pairs = self.data.pairs(indices)
        own = self.score(pairs)
        others = self.data.mismatched(indices) if self.config.mismatched else []
        part.counts["mismatched"] = part.counts.get("mismatched", 0) + len(others)
        other = self.score(others)[:, 0] if others else torch.zeros(len(pairs))
        columns = [pa.array(column.numpy()) for column in (*own.unbind(1), other)]
        return pa.table([pa.array([pair.pair_id for pair in pairs]), *columns], schema=LOGPROBS)
