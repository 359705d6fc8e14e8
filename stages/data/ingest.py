"""Users' files become records; rows that cannot be used go to quarantine with file, line and reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any

import pyarrow as pa

from stages.base import StageError, Summary
from stages.core.errors import NoPair, RowError
from stages.core.formats import RowParser, parse_prompt
from stages.core.records import PAIRS, PROMPTS, pair_row, prompt_key, prompt_row
from stages.data.config import IngestConfig
from stages.data.seen import prompt_keys
from stages.io.artifact import Artifact, Table, UserFile, grouped
from stages.io.context import StageContext
from stages.io.filenames import RECORDS
from stages.io.output import Output, add_up
from stages.io.parts import part_name, run_alone
from stages.io.quarantine import Quarantine
from stages.readers import DataFile, Row, file_at, rows

Progress = Callable[[int, int, str], object]
_ROWS = 1000
"""Records held at a time."""
_PART = 50_000
"""Records of a part: what a machine fetches that needs some of them."""


def run(config: IngestConfig, inputs: Mapping[str, UserFile | Artifact], context: StageContext) -> Summary:
    """Read the files one after another; parts have ``records.arrow`` and ``quarantine.jsonl``.

    ``read`` counts the files' rows and ``rows`` what they became; ``skipped`` counts valid rows that yield no pair by
    their nature, such as answers with equal scores.

    Prompts that stand in the records ``seen``, those of earlier ticks of a schedule, are left out and counted as
    ``seen``; there may then be none left. Pairs are not compared here: a file's records are kept for the file alone,
    and ``stages.data.curate`` leaves out those that were seen.

    Raises:
        StageError: there are no prompts, and nothing was ``seen``. (Pairs are checked together with those of other
            files, in ``stages.data.curate``.)
        ValueError: pairs are given ``seen``.
    """
    files = [each for each in grouped(inputs, "files") if isinstance(each, UserFile)]
    seen = [each for each in grouped(inputs, "seen") if isinstance(each, Artifact)]
    if seen and config.kind != "prompts":
        raise ValueError("only prompts are compared with those that were seen")
    tables = [table for artifact in seen for table in artifact.tables(RECORDS)] if seen else None
    summary: Summary = run_alone("stages.data.ingest:ingest", context, config, files, tables)
    if not summary["rows"] and config.kind == "prompts" and not seen:
        names, reasons = ", ".join(file.name for file in files), summary["quarantine_reasons"]
        raise StageError(f"no usable row in {names}" + (f"; all went to quarantine: {reasons}" if reasons else ""))
    return summary


def ingest(
    output: Output, report: Progress, config: IngestConfig, files: Sequence[UserFile], seen: Sequence[Table] | None
) -> Summary:
    """Read the files to their end, one part after another, without the prompts that were ``seen``."""
    schema = PAIRS if config.kind == "pairs" else PROMPTS
    known = frozenset(prompt_keys(seen or ()))
    reading = _Reading(config, [file_at(file.location, file.name) for file in files], report, known)
    records = reading.records()
    for number in count():
        with output.part(part_name(number)) as part:
            reading.quarantine = part.quarantine
            rows = part.table(RECORDS, _tables(islice(records, _PART), schema), schema)
        if rows < _PART:
            break
    counts = add_up(part.counts for part in output.parts)
    skipped = {"skipped": reading.skipped.total(), "skipped_reasons": dict(reading.skipped.most_common())}
    left_out = {} if seen is None else {"seen": reading.seen}
    return {"read": reading.read, **counts, **(skipped if reading.skipped else {}), **left_out}


def _tables(records: Iterator[Mapping[str, Any]], schema: pa.Schema) -> Iterator[pa.Table]:
    while rows := list(islice(records, _ROWS)):
        yield pa.Table.from_pylist(rows, schema=schema)


@dataclass
class _Reading:
    config: IngestConfig
    files: Sequence[DataFile]
    report: Progress
    known: frozenset[str] = frozenset()
    """The keys of prompts that are left out."""
    quarantine: Quarantine | None = None
    """That of the part which is being written."""
    skipped: Counter[str] = field(default_factory=Counter)
    read: int = 0
    """Rows of the files so far, usable or not."""
    seen: int = 0
    """Those whose prompts are known."""

    def records(self) -> Iterator[Mapping[str, Any]]:
        """Every row that can be used, as rows of ``PAIRS`` or ``PROMPTS``."""
        read = self._pairs() if self.config.kind == "pairs" else self._prompts()
        for number, record in enumerate(read):
            if number % _ROWS == 0:
                self.report(number, 0, self.config.kind)
            yield record

    def _pairs(self) -> Iterator[Mapping[str, Any]]:
        parser = RowParser(self.config)
        for row in self._rows():
            try:
                for pair in parser.pairs(_value(row), row.typed):
                    yield {**pair_row(pair), "source": str(row.place)}
            except NoPair as why:
                self.skipped[str(why)] += 1
            except RowError as error:
                self._reject(row, error)

    def _prompts(self) -> Iterator[Mapping[str, Any]]:
        """Rollouts are grouped by prompt id, so a prompt may appear only once. Of the known ones every row is left out:
        a repeated one is then no mistake of the file's."""
        places: dict[str, str] = {}
        for row in self._rows():
            place = str(row.place)
            try:
                prompt = parse_prompt(_value(row), row.typed)
                if self.known and prompt_key(prompt.messages) in self.known:
                    self.seen += 1
                    continue
                first = places.setdefault(prompt.prompt_id, place)
                if first != place:
                    raise RowError("prompt", f"repeats an earlier prompt; first at {first}")
                yield prompt_row(prompt, place)
            except RowError as error:
                self._reject(row, error)

    def _rows(self) -> Iterator[Row]:
        for file in self.files:
            for row in rows(file):
                self.read += 1
                yield row

    def _reject(self, row: Row, error: RowError) -> None:
        assert self.quarantine is not None
        self.quarantine.add(Quarantine.row(str(row.place), error, row.excerpt))


def _value(row: Row) -> Mapping[str, Any]:
    if isinstance(row.value, RowError):
        raise row.value
    return row.value
