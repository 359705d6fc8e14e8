"""One look at all rows by everything that the report wants to know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from stages.data.config import QualityConfig
from stages.data.quality.contamination import Contamination
from stages.data.quality.counts import Counts, SameAnswers
from stages.data.quality.exact import Contradictions, Duplicates
from stages.data.quality.filters import Detector, Progress, look
from stages.data.quality.languages import Languages
from stages.data.quality.lengths import Count, Measured
from stages.data.quality.near import Link, NearDuplicates
from stages.data.quality.noise import Votes
from stages.data.quality.rows import Records, Row
from stages.io.artifact import Table

_HASHES = 1 << 64


class Sample:
    """Shows a detector the rows whose prompt hashes below a limit: the same ones however the rows are cut into files,
    and always all pairs of a prompt."""

    def __init__(self, detector: Detector, limit: int) -> None:
        self._detector = detector
        self._limit = limit
        self.columns: tuple[str, ...] = ("prompt_key", *detector.columns)
        self.rows = 0

    def see(self, row: Row) -> None:
        if int(row.prompt_key, 16) < self._limit:
            self.rows += 1
            self._detector.see(row)


@dataclass(frozen=True)
class Survey:
    """What was found. ``sampled`` is how many rows the languages, the near duplicates and the lengths are of."""

    records: Records
    config: QualityConfig
    counts: Counts
    duplicates: Duplicates
    contradictions: Contradictions
    same_answers: SameAnswers
    contamination: Contamination | None
    votes: Votes
    lengths: Measured
    unit: str
    languages: Languages
    links: Sequence[Link]
    sampled: int


def survey(
    files: Sequence[Sequence[Table]],
    heldout: Sequence[Table],
    config: QualityConfig,
    count: Count | None,
    progress: Progress,
) -> Survey:
    """Look at every row of ``files``; ``count`` gives the tokens of texts, without it lengths are in words."""
    records = Records(files)
    limit = _HASHES if len(records) <= config.sample else _HASHES * config.sample // len(records)
    near, languages, lengths = NearDuplicates(config.similarity), Languages(), Measured(count)
    found = Survey(
        records=records,
        config=config,
        counts=Counts(records),
        duplicates=Duplicates(),
        contradictions=Contradictions(),
        same_answers=SameAnswers(),
        contamination=Contamination(heldout, config.ngram) if heldout else None,
        votes=Votes(),
        lengths=lengths,
        unit="words" if count is None else "tokens",
        languages=languages,
        links=[],
        sampled=0,
    )
    sample = Sample(near, limit)
    everything: list[Detector] = [
        found.counts, found.duplicates, found.contradictions, found.same_answers, found.votes, sample,
        Sample(languages, limit), Sample(lengths, limit),
    ]  # fmt: skip
    look(records, [*everything, *([found.contamination] if found.contamination else [])], progress)
    links = near.links(records, progress)
    return replace(found, links=links, sampled=sample.rows)
