"""Tokenised pairs become training shards: the selected rows of the given data, a round's own pairs, and a share of
earlier ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.base import Artifact, StageContext, StageError, Summary, grouped
from stages.core.records import SHARD
from stages.data.badrows import BadRows, refuse_too_many
from stages.data.config import PrepareConfig
from stages.io.filenames import SELECTION, TOKENISED, shard_name
from stages.io.tables import read_table, write_table

_SLICE = 16384
"""Rows handled at a time."""


def run(config: PrepareConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Write shards of ``shard_rows`` rows; their order is that of the inputs.

    Raises:
        StageError: no pair is left, or too many of a source's rows were refused.
    """
    if not config.heldout:
        _check_refused(config, inputs)
    counts = {"pairs": 0, "shards": 0, "tokens": 0, "unpaired": 0}
    pending: list[pa.Table] = []

    def flush(rows: int) -> None:
        table = pa.concat_tables(pending)
        pending[:] = [table.slice(rows)]
        write_table(context.output / shard_name(counts["shards"]), [table.slice(0, rows)], SHARD)
        counts["shards"] += 1

    for table in _tables(config, inputs):
        _count(table, counts)
        pending.append(table)
        while sum(t.num_rows for t in pending) >= config.shard_rows:
            flush(config.shard_rows)
        context.progress(counts["pairs"], 0, "pairs")
    if left := sum(t.num_rows for t in pending):
        flush(left)
    if not counts["pairs"]:
        raise StageError(_nothing_left(config))
    return counts


def _nothing_left(config: PrepareConfig) -> str:
    if config.heldout:
        return "no held-out pair is left; raise data.heldout, or set it to 0"
    return (
        "no pair is left to train on: the judge found no two answers far enough apart (lower pair.min_margin), or all "
        "went to quarantine while they were tokenised (raise prepare.max_length, or set prepare.truncation)"
    )


def _check_refused(config: PrepareConfig, inputs: Mapping[str, Artifact]) -> None:
    """Rows that could not be tokenised count like those that could not be read."""

    def rows(artifact: Artifact) -> BadRows:
        summary = artifact.summary
        return BadRows(summary.get("read", 0), summary.get("bad", 0), summary.get("bad_reasons", {}))

    given = grouped(inputs, "selected")
    for source in sorted(set(config.source_of)):
        own = [rows(a) for a, number in zip(given, config.source_of, strict=True) if number == source]
        refuse_too_many(f"preferences.{source}", own, config.max_bad_share)
    for artifact in grouped(inputs, "pairs"):
        refuse_too_many("the round's own pairs", [rows(artifact)], config.max_bad_share)


def _count(table: pa.Table, counts: dict[str, int]) -> None:
    lengths = {name: pc.list_value_length(table[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")}
    counts["pairs"] += table.num_rows
    counts["tokens"] += sum(pc.sum(each).as_py() or 0 for each in lengths.values())
    empty = pc.or_(pc.equal(lengths["chosen_ids"], 0), pc.equal(lengths["rejected_ids"], 0))
    counts["unpaired"] += pc.sum(empty).as_py() or 0


def _tables(config: PrepareConfig, inputs: Mapping[str, Artifact]) -> Iterator[pa.Table]:
    if "selection" in inputs:
        files = [artifact.path / TOKENISED for artifact in grouped(inputs, "selected")]
        for table in _selected(inputs["selection"].path / SELECTION, files, config.heldout):
            yield _thinned(table, config.preferences)
    for name, share in (("pairs", 1.0), ("replay", config.replay)):
        for artifact in grouped(inputs, name):
            table = read_table(artifact.path / TOKENISED)
            for start in range(0, table.num_rows, _SLICE):
                yield _thinned(table.slice(start, _SLICE).select(SHARD.names), share)


def _selected(selection: Path, files: list[Path], heldout: bool) -> Iterator[pa.Table]:
    """The chosen rows with the label, weight and task that the selection gives them. A chosen row that could not be
    tokenised is left out."""
    table = read_table(selection)
    opened = [read_table(file) for file in files]
    rows_of = [tokens["row"].to_numpy() for tokens in opened]
    for start in range(0, table.num_rows, _SLICE):
        part = table.slice(start, _SLICE)
        part = part.filter(part["heldout"] if heldout else pc.invert(part["heldout"]))
        for number in pc.unique(part["input"]).to_pylist():
            own = part.filter(pc.equal(part["input"], number))
            wanted = own["row"].to_numpy()
            places = np.searchsorted(rows_of[number], wanted)
            there = places < len(rows_of[number])
            there[there] = rows_of[number][places[there]] == wanted[there]
            found = opened[number].take(pa.array(places[there])).select(SHARD.names)
            labels = own.filter(pa.array(there))
            for name in ("probability", "weight", "task"):
                found = found.set_column(found.schema.get_field_index(name), name, labels[name])
            yield found


def _thinned(table: pa.Table, share: float) -> pa.Table:
    """A fixed share of the pairs by the hash in their id: the same ones every time, whatever else there is."""
    if share >= 1:
        return table
    ids = table["pair_id"].to_pylist()
    return table.filter(pa.array([int(pair_id, 16) < share * float(16 ** len(pair_id)) for pair_id in ids], pa.bool_()))
