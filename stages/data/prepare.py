"""Tokenised pairs become training shards: the selected rows of the given data, a round's own pairs, and a share of
earlier ones, of earlier rounds or of earlier ticks of a schedule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.base import StageError, Summary
from stages.core.records import SHARD
from stages.data.badrows import BadRows, refuse_too_many
from stages.data.config import PrepareConfig
from stages.data.encode import SLICE
from stages.io.artifact import Artifact, Table, grouped
from stages.io.context import StageContext
from stages.io.filenames import SELECTION, TOKENISED
from stages.io.filenames import SHARD as SHARD_FILE
from stages.io.output import PartWriter
from stages.io.parts import part_name, run_parts, slices
from stages.io.tables import Rows, read_table

_ROWS_EACH = 100_000


def run(config: PrepareConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Write shards of at most ``shard_rows`` rows, in parallel; their order is that of the inputs.

    What earlier ticks selected to train on (``past_selection``, with the tokens of their files in ``past``) comes last.
    It is never held out again, and the rows that were refused then do not count now.

    Raises:
        StageError: no pair is left, or too many of a source's rows were refused.
        ValueError: ``past_of`` has not one number for each file of ``past``.
    """
    if not config.heldout:
        _check_refused(config, inputs)
    sources = _sources(config, inputs)
    tasks = [
        {**task, "source": number}
        for number, source in enumerate(sources)
        for task in slices(source.rows, config.shard_rows)
    ]
    tasks = [{**task, "part": part_name(at, task["start"], task["stop"])} for at, task in enumerate(tasks)]
    counts = run_parts(
        tasks, "stages.data.prepare:Sharder", context, "pairs", rows_each=_ROWS_EACH, config=config, sources=sources
    )
    if not counts.get("rows"):
        raise StageError(_nothing_left(config))
    return {"pairs": counts.pop("rows"), "shards": len(tasks), **counts}


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


@dataclass(frozen=True)
class Source:
    """Token files that shards are made from: the rows of a selection, or all of them; of these a share."""

    files: tuple[Artifact, ...]
    selection: Table | None
    share: float

    @property
    def rows(self) -> int:
        """Rows from which shards are cut; not all of them end up in one."""
        tables = [table for file in self.files for table in file.tables(TOKENISED)]
        return self.selection.rows if self.selection else sum(table.rows for table in tables)


def _sources(config: PrepareConfig, inputs: Mapping[str, Artifact]) -> list[Source]:
    found = []
    if "selection" in inputs:
        (selection,) = inputs["selection"].tables(SELECTION)
        found.append(Source(tuple(grouped(inputs, "selected")), selection, config.preferences))
    for name, share in (("pairs", 1.0), ("replay", config.replay)):
        found += [Source((artifact,), None, share) for artifact in grouped(inputs, name)]
    return found if config.heldout else [*found, *_past(config, inputs)]


def _past(config: PrepareConfig, inputs: Mapping[str, Artifact]) -> Iterator[Source]:
    """Every earlier tick's selection with that tick's own files, since it names them by their numbers there."""
    files = list(zip(config.past_of, grouped(inputs, "past"), strict=True))
    for tick, artifact in enumerate(grouped(inputs, "past_selection")):
        (selection,) = artifact.tables(SELECTION)
        yield Source(tuple(file for of, file in files if of == tick), selection, config.replay)


class Sharder:
    """Makes shards of slices of the sources."""

    def __init__(self, config: PrepareConfig, sources: Sequence[Source]) -> None:
        self._heldout, self._sources = config.heldout, sources
        self._opened = lru_cache(8)(self._open)  # slices come in order

    def __call__(self, task: Mapping[str, Any], part: PartWriter) -> None:
        source, start, stop = self._sources[task["source"]], task["start"], task["stop"]
        if source.selection is None:
            found = Rows(source.files[0].tables(TOKENISED)).slice(start, stop).select(SHARD.names)
        else:
            labels = read_table(source.selection.path).slice(start, stop - start)
            wanted = labels["heldout"] if self._heldout else pc.invert(labels["heldout"])
            found = pa.concat_tables(self._labelled(task["source"], labels.filter(wanted)))
        shard = _thinned(found, source.share)
        part.table(SHARD_FILE, [shard], SHARD)
        part.counts |= _count(shard)

    def _labelled(self, source: int, labels: pa.Table) -> Iterator[pa.Table]:
        """The chosen rows with the label, weight and task that the selection gives them. A chosen row that could not be
        tokenised is left out."""
        files, rows = labels["input"].to_numpy(), labels["row"].to_numpy()
        borders = np.flatnonzero(np.diff(files) | np.diff(rows // SLICE)) + 1
        for start, stop in pairwise([0, *borders.tolist(), len(rows)] if len(rows) else []):
            tokens = self._opened(source, int(files[start]), int(rows[start]) // SLICE)
            there, wanted = tokens["row"].to_numpy(), rows[start:stop]
            places = np.searchsorted(there, wanted)
            known = places < len(there)
            known[known] = there[places[known]] == wanted[known]
            found = tokens.take(pa.array(places[known])).select(SHARD.names)
            own = labels.slice(start, stop - start).filter(pa.array(known))
            for name in ("probability", "weight", "task"):
                found = found.set_column(found.schema.get_field_index(name), name, own[name])
            yield found
        yield SHARD.empty_table()

    def _open(self, source: int, file: int, number: int) -> pa.Table:
        """The tokens of one slice of a file."""
        return read_table(self._sources[source].files[file].tables(TOKENISED)[number].path)


def _count(table: pa.Table) -> dict[str, Any]:
    lengths = {name: pc.list_value_length(table[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")}
    empty = pc.or_(pc.equal(lengths["chosen_ids"], 0), pc.equal(lengths["rejected_ids"], 0))
    return {
        "tokens": sum(pc.sum(each).as_py() or 0 for each in lengths.values()),
        "unpaired": pc.sum(empty).as_py() or 0,
    }


def _thinned(table: pa.Table, share: float) -> pa.Table:
    """A fixed share of the pairs by the hash in their id: the same ones every time, whatever else there is."""
    if share >= 1:
        return table
    ids = table["pair_id"].to_pylist()
    return table.filter(pa.array([int(pair_id, 16) < share * float(16 ** len(pair_id)) for pair_id in ids], pa.bool_()))
