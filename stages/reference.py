"""The reference model's log-probabilities of every response, written beside the shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from stages.base import Artifact, StageContext, StageError, Summary
from stages.catalog import ReferenceConfig
from stages.core.batching import collate, micro_batches, pair_length
from stages.core.logprobs import ResponseLogprobs, agrees, sequence_logprobs
from stages.core.records import LOGPROBS
from stages.layout import shard_files
from stages.models import device_of_worker, load_model, load_policy
from stages.raydata import map_actors
from stages.shards import encoded_pairs
from stages.tables import read_table, write_table

_SLICE = 64
_TOKENS = 4096


def run(config: ReferenceConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Score every shard in slices, one model a Ray Data worker; one output file a shard, rows in its order."""
    shards = shard_files(inputs["shards"].path)
    rows = {shard: read_table(shard).num_rows for shard in shards}
    tasks = [
        {"shard": str(shard), "start": start, "stop": min(start + _SLICE, rows[shard])}
        for shard in shards
        for start in range(0, rows[shard], _SLICE)
    ]
    total = sum(rows.values())
    policy = inputs["policy"].path
    tables = map_actors(
        tasks, Scorer, context.resources,
        policy=str(policy), precision=config.precision, quantization=config.quantization,
    )  # fmt: skip
    logprobs: list[pa.Table] = []
    for table in tables:
        logprobs.append(table)
        context.progress(sum(t.num_rows for t in logprobs), total, "pairs")
    everything = pa.concat_tables(logprobs)
    start = 0
    for shard in shards:
        write_table(context.output / shard.name, [everything.slice(start, rows[shard])], LOGPROBS)
        start += rows[shard]
    return {"pairs": total}


class Scorer:
    """Holds the reference model; maps slices of shards to log-probabilities (float32 sums)."""

    def __init__(self, policy: str, precision: str, cpus: int, quantization: str | None = None) -> None:
        torch.set_num_threads(cpus)
        self.device = device_of_worker()
        if quantization is None:
            model = load_policy(Path(policy), self.device).eval()
        else:
            model = load_model(Path(policy), self.device, quantization, precision).eval()
        if not agrees(model):
            raise StageError(f"{type(model).__name__} treats its logits in a way that Rondo does not know")
        self.model = ResponseLogprobs(model)
        self.precision = precision

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for task in batch.to_pylist():
            yield self.score(task)

    @torch.no_grad()
    def score(self, task: Mapping[str, Any]) -> pa.Table:
        table = read_table(Path(task["shard"])).slice(task["start"], task["stop"] - task["start"])
        pairs = encoded_pairs(table)
        chosen, rejected = torch.zeros(len(pairs)), torch.zeros(len(pairs))
        for group in micro_batches([pair_length(pair) for pair in pairs], _TOKENS):
            batch = collate([pairs[i] for i in group], pad_id=0).to(self.device)
            a, b = sequence_logprobs(self.model, batch, self.precision)
            chosen[group], rejected[group] = a.cpu(), b.cpu()
        columns = [table["pair_id"].combine_chunks(), pa.array(chosen.numpy()), pa.array(rejected.numpy())]
        return pa.table(columns, schema=LOGPROBS)
