"""Pairs become tokenised Arrow shards: token ids and completion masks by the model's chat template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.base import Artifact, StageContext, StageError, Summary, grouped
from stages.catalog import PrepareConfig
from stages.core.formats import RowError
from stages.core.records import SHARD, pair_of
from stages.core.truncation import truncated
from stages.layout import RECORDS, shard_name
from stages.models import load_encoder
from stages.raydata import map_tasks
from stages.tables import read_table, write_quarantine, write_table

_SLICE = 1000
_CUTS = ("prompt", "response")
"""What may have been cut of a row."""


def run(config: PrepareConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Tokenise the pairs and the replayed share of earlier ones; write shards and ``quarantine.jsonl``.

    Raises:
        StageError: no pair is left to train on.
    """
    tasks: list[dict[str, Any]] = []
    for name, keep in (("pairs", 1.0), ("replay", config.replay)):
        for artifact in grouped(inputs, name):
            file = artifact.path / RECORDS
            rows = read_table(file).num_rows
            shared = {
                "file": str(file),
                "keep": keep,
                "policy": str(inputs["policy"].path),
                "max_length": config.max_length,
                "truncation": config.truncation,
            }
            tasks += [{**shared, "start": at, "stop": min(at + _SLICE, rows)} for at in range(0, rows, _SLICE)]
    if not tasks:
        raise StageError("no pairs: the judge found no two answers far enough apart; lower pair.min_margin")
    rejected: list[dict[str, Any]] = []
    counts = _write_shards(config, tasks, rejected, context)
    summary = {**counts, **write_quarantine(context.output, rejected)}
    if not counts["pairs"]:
        raise StageError(f"no pair can be trained on; all went to quarantine: {summary['quarantine_reasons']}")
    return summary


def _write_shards(
    config: PrepareConfig, tasks: list[dict[str, Any]], rejected: list[dict[str, Any]], context: StageContext
) -> dict[str, int]:
    """Write shards of ``shard_rows`` rows in the pairs' order, whatever the parallelism."""
    pending: list[pa.Table] = []
    counts = {"pairs": 0, "shards": 0, "tokens": 0, "unpaired": 0, **{f"truncated_{name}s": 0 for name in _CUTS}}

    def flush(rows: int) -> None:
        table = pa.concat_tables(pending)
        pending[:] = [table.slice(rows)]
        write_table(context.output / shard_name(counts["shards"]), [table.slice(0, rows)], SHARD)
        counts["shards"] += 1

    for done, table in enumerate(map_tasks(tasks, encode_slice), 1):
        bad = table.filter(pa.compute.is_valid(table["reason"]))
        rejected.extend(bad.select(["file", "line", "field", "reason", "excerpt"]).to_pylist())
        good = table.filter(pa.compute.is_null(table["reason"]))
        for name in _CUTS:
            counts[f"truncated_{name}s"] += sum(good[name].to_pylist())
        good = good.select(SHARD.names)
        counts["pairs"] += good.num_rows
        counts["unpaired"] += sum(not c or not r for c, r in zip(good["chosen_ids"], good["rejected_ids"], strict=True))
        counts["tokens"] += sum(len(x) for n in ("prompt_ids", "chosen_ids", "rejected_ids") for x in good[n])
        pending.append(good)
        while sum(t.num_rows for t in pending) >= config.shard_rows:
            flush(config.shard_rows)
        context.progress(done, len(tasks), f"{counts['pairs']} pairs")
    if left := sum(t.num_rows for t in pending):
        flush(left)
    return counts


def encode_slice(task: Mapping[str, Any]) -> Iterator[pa.Table]:
    """Some rows of a pairs file as rows of a shard, with a reason for those that cannot be used."""
    encoder = load_encoder(Path(task["policy"]))
    schema = pa.schema(
        [*SHARD, ("file", pa.string()), ("line", pa.int64()), ("field", pa.string()), ("reason", pa.string()),
         ("excerpt", pa.string()), *((name, pa.bool_()) for name in _CUTS)]
    )  # fmt: skip
    rows = []
    for row in read_table(Path(task["file"])).slice(task["start"], task["stop"] - task["start"]).to_pylist():
        if not _kept(row["pair_id"], task["keep"]):
            continue
        pair = pair_of(row)
        try:
            cut = truncated(encoder.pair(pair), task["max_length"], task["truncation"])
            rows.append({**vars(cut.pair), **{name: getattr(cut, name) for name in _CUTS}})
        except RowError as error:
            file, _, line = pair.source.rpartition(":")
            where = {"file": file, "line": int(line)} if line.isdigit() else {"file": pair.source, "line": None}
            excerpt = pair.prompt[-1]["content"][:200]
            rows.append({**where, "field": error.field, "reason": error.reason, "excerpt": excerpt})
    yield pa.Table.from_pylist(rows, schema=schema)


def _kept(pair_id: str, share: float) -> bool:
    """A fixed share of the pairs by the hash in their id: the same ones every time, whatever else there is."""
    return int(pair_id, 16) < share * float(16 ** len(pair_id))
