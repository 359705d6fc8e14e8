"""The reference model's log-probabilities of every response, written beside the shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from stages.base import Artifact, StageContext, Summary
from stages.core.records import LOGPROBS
from stages.io.filenames import shard_files
from stages.io.parts import map_actors
from stages.io.tables import read_table, write_table
from stages.score.config import ReferenceConfig

_SLICE = 64
_ONE_PROMPT = (
    "all pairs have the same prompt: there is no answer to another one from which kto could estimate its divergence "
    "(z0), so z0 stays 0"
)


def run(config: ReferenceConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Score all pairs in slices, one model per worker; one output file per shard, rows in its order.

    The summary has a ``note`` where no mismatched answer can belong to another prompt.
    """
    shards = shard_files(inputs["shards"].path)
    rows = [read_table(shard).num_rows for shard in shards]
    total = sum(rows)
    tasks = [{"start": start, "stop": min(start + _SLICE, total)} for start in range(0, total, _SLICE)]
    tables = map_actors(
        tasks, "stages.score.scorer:Scorer", context.resources,
        config=config, policy=str(inputs["policy"].path), shards=str(inputs["shards"].path),
    )  # fmt: skip
    logprobs: list[pa.Table] = []
    for table in tables:
        logprobs.append(table)
        context.progress(sum(t.num_rows for t in logprobs), total, "pairs")
    everything = pa.concat_tables(logprobs)
    start = 0
    for shard, count in zip(shards, rows, strict=True):
        write_table(context.output / shard.name, [everything.slice(start, count)], LOGPROBS)
        start += count
    return {"pairs": total, **({"note": _ONE_PROMPT} if config.mismatched and _one_prompt(shards) else {})}


def _one_prompt(shards: Sequence[Path]) -> bool:
    """Whether all pairs have the same prompt; seen within a few rows where they have not."""
    prompts = (ids for shard in shards for chunk in read_table(shard)["prompt_ids"].chunks for ids in chunk)
    first = next(prompts, None)
    return all(ids == first for ids in prompts)
