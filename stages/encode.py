"""Pairs become token ids and completion masks by the model's chat template, once for each file of pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stages.base import Artifact, StageContext, Summary
from stages.catalog import EncodeConfig
from stages.core.formats import RowError
from stages.core.records import TOKENS, pair_of
from stages.core.truncation import truncated
from stages.layout import RECORDS, TOKENISED
from stages.models import load_encoder
from stages.raydata import map_tasks
from stages.tables import Quarantine, read_table, write_table

_SLICE = 1000
_CUTS = ("prompt", "response")
"""What may have been cut of a row."""


def run(config: EncodeConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Tokenise all pairs in slices, in parallel; write ``tokens.arrow`` in the pairs' order and ``quarantine.jsonl``.

    A row that cannot be encoded is missing there: ``row`` says which of the pairs each row is.
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
    return {"pairs": pairs, **counts, **quarantine.summary}


def encode_slice(task: Mapping[str, Any]) -> Iterator[pa.Table]:
    """Some rows of a pairs file as rows of ``TOKENS``, with a reason for those that cannot be used."""
    encoder = load_encoder(Path(task["policy"]))
    schema = pa.schema([*TOKENS, *Quarantine.SCHEMA, *((name, pa.bool_()) for name in _CUTS)])
    rows = []
    table = read_table(Path(task["file"])).slice(task["start"], task["stop"] - task["start"])
    for number, row in enumerate(table.to_pylist(), task["start"]):
        pair = pair_of(row)
        try:
            cut = truncated(encoder.pair(pair), task["max_length"], task["truncation"])
            rows.append({**vars(cut.pair), "row": number, **{name: getattr(cut, name) for name in _CUTS}})
        except RowError as error:
            rows.append(Quarantine.row(pair.source, error, pair.prompt[-1]["content"]))
    yield pa.Table.from_pylist(rows, schema=schema)
