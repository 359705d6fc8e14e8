"""Pairs become token ids through the model's chat template, once for each file of pairs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stages.base import Artifact, StageContext, Summary
from stages.core.errors import RowError
from stages.core.records import SHARD, TOKENS
from stages.core.tokens.encoding import encode_records
from stages.data.badrows import after
from stages.data.config import EncodeConfig
from stages.io.filenames import RECORDS, TOKENISED
from stages.io.parts import map_tasks
from stages.io.quarantine import Quarantine
from stages.io.tables import read_table, write_table

_SLICE = 1000
_CUTS = ("prompt", "response")
"""What may have been cut from a row."""
_SCHEMA = pa.schema([*TOKENS, *Quarantine.SCHEMA, *((name, pa.bool_()) for name in _CUTS)])


def run(config: EncodeConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Tokenise all pairs in slices, in parallel; write ``tokens.arrow`` in the pairs' order and ``quarantine.jsonl``.

    A row that cannot be encoded is missing there: ``row`` says which pair each row is.
    """
    file = inputs["pairs"].path / RECORDS
    total = read_table(file).num_rows
    shared = {**config.model_dump(), "file": str(file), "policy": str(inputs["policy"].path)}
    tasks = [{**shared, "start": at, "stop": min(at + _SLICE, total)} for at in range(0, total, _SLICE)]
    counts = {f"truncated_{name}s": 0 for name in _CUTS}

    with Quarantine(context.output) as quarantine:

        def good() -> Iterator[pa.Table]:
            for done, table in enumerate(map_tasks(tasks, encode_slice) if tasks else (), 1):
                quarantine.add_table(table.filter(pc.is_valid(table["reason"])))
                used = table.filter(pc.is_null(table["reason"]))
                for name in _CUTS:
                    counts[f"truncated_{name}s"] += pc.sum(used[name]).as_py() or 0
                context.progress(min(done * _SLICE, total), total, "pairs")
                yield used

        pairs = write_table(context.output / TOKENISED, good(), TOKENS)
    refused = after(inputs["pairs"].summary, total, quarantine.summary)
    return {"pairs": pairs, **counts, **quarantine.summary, **refused.summary()}


def encode_slice(task: Mapping[str, Any]) -> Iterator[pa.Table]:
    """Some rows of a pairs file as rows of ``TOKENS``; then those that cannot be used, each with a reason."""
    from stages.policy.load import load_encoder  # here, since the driver does not import transformers

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there are as many tasks as CPUs; each takes one
    encoder = load_encoder(Path(task["policy"]))
    records = read_table(Path(task["file"])).slice(task["start"], task["stop"] - task["start"])
    found = encode_records(encoder, records, task["max_length"], task["truncation"])
    columns = {name: found.table[name] for name in SHARD.names}
    columns |= {"row": found.rows + task["start"], "prompt": found.prompt_cut, "response": found.response_cut}
    missing = {name: pa.nulls(found.table.num_rows, kind) for name, kind in Quarantine.SCHEMA}
    yield pa.table({**columns, **missing}, schema=_SCHEMA)
    if found.errors:
        yield pa.Table.from_pylist([_rejected(records, row, error) for row, error in found.errors], schema=_SCHEMA)


def _rejected(records: pa.Table, row: int, error: RowError) -> dict[str, str]:
    (record,) = records.slice(row, 1).to_pylist()
    return Quarantine.row(record["source"], error, record["prompt"][-1]["content"] or "")
