"""A model that scores pairs, held by a worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from stages.base import StageError
from stages.core.forward.logprobs import ResponseLogprobs, agrees, choose_layout, freeze
from stages.core.forward.packing import collate, micro_batches
from stages.core.records import LOGPROBS
from stages.core.tokens.pair import EncodedPair
from stages.data.shards import ShardData
from stages.io.allocator import keep_freed_memory
from stages.io.artifact import Artifact
from stages.io.filenames import LOGPROBS as LOGPROBS_FILE
from stages.io.output import PartWriter
from stages.io.parts import assigned_cpus
from stages.policy.load import device_of_worker, load_model, load_policy, product_precision
from stages.score.config import ReferenceConfig

_TOKENS = 2048
_SLICE = 64
"""Pairs that are decoded at a time."""


class Scorer:
    """Holds the reference model; makes log-probabilities (float32 sums) of slices of pairs."""

    def __init__(self, config: ReferenceConfig, policy: Artifact, shards: Artifact) -> None:
        keep_freed_memory()
        torch.set_num_threads(assigned_cpus())
        self.device = device_of_worker()
        self.config = config
        precision = product_precision(config.precision, self.device)
        self.data = ShardData(shards)
        if config.quantization is None:
            model = load_policy(policy.folder(), self.device).eval()
        else:
            model = load_model(policy.folder(), self.device, config.quantization, config.precision).eval()
        self.layout = choose_layout(model, config.layout)
        if config.quantization is None and not agrees(model, self.layout):
            raise StageError(
                f"{type(model).__name__} treats its attention or its logits in a way that Rondo does not know; "
                "try train.layout: padded"
            )
        frozen = freeze(model.requires_grad_(False), precision)
        self.model = ResponseLogprobs(frozen, self.layout, precision)

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

    @torch.no_grad()
    def score(self, pairs: Sequence[EncodedPair]) -> Tensor:
        """Log-probabilities of chosen and rejected responses, float32 [pairs, 2]."""
        result = torch.zeros(len(pairs), 2)
        for group in micro_batches(pairs, self.layout, _TOKENS):
            batch = collate([pairs[i] for i in group], self.layout).to(self.device)
            result[group] = self.model(batch).logprobs.view(-1, 2).cpu()
        return result
