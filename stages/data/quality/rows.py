"""Rows of records files, streamed in order or fetched by number."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

from stages.data.quality.text import digest, words
from stages.io.artifact import Table
from stages.io.tables import Rows, stream_columns
from stages.readers import Place

_SLICE = 1000
_APART = "\x1f"
"""White space to Python, and escaped in JSON: it stands in no key's parts."""
TEXTS = ("prompt", "chosen", "rejected")
KEYS = ("prompt_key", "chosen", "rejected")
LABELS = ("probability", "votes")


class Row:
    """One pair as the detectors look at it. ``number`` counts over all files. What is asked for is worked out once."""

    def __init__(self, number: int, values: Mapping[str, Any]) -> None:
        self.number = number
        self.values = values

    @cached_property
    def pair_id(self) -> int:
        return int(self.values["pair_id"], 16)

    @cached_property
    def texts(self) -> tuple[str, str, str]:
        """What stands in prompt, chosen and rejected."""
        prompt, chosen, rejected = (_text(self.values[name]) for name in TEXTS)
        return prompt, chosen, rejected

    @cached_property
    def words(self) -> tuple[list[str], list[str], list[str]]:
        """The words of prompt, chosen and rejected."""
        prompt, chosen, rejected = map(words, self.texts)
        return prompt, chosen, rejected

    @cached_property
    def lengths(self) -> tuple[int, int, int]:
        """Words of prompt, chosen and rejected."""
        prompt, chosen, rejected = map(len, self.words)
        return prompt, chosen, rejected

    @property
    def paired(self) -> bool:
        return bool(self.values["chosen"] and self.values["rejected"])

    @property
    def answer(self) -> str:
        """The chosen response, or the only one."""
        return _text(self.values["chosen"]) or _text(self.values["rejected"])

    @property
    def prompt_key(self) -> str:
        """As ingest wrote it (``records.prompt_key``)."""
        return str(self.values["prompt_key"])

    @cached_property
    def answer_keys(self) -> tuple[str, str]:
        """Equal for chosen and rejected responses that differ only in case or white space; "" where there is none."""
        return _answer_key(self.values["chosen"]), _answer_key(self.values["rejected"])

    @property
    def comparison(self) -> int:
        """64 bits that are equal for pairs of the same prompt and answers, whichever is preferred."""
        return digest(_APART.join([self.prompt_key, *sorted(self.answer_keys)]))

    @cached_property
    def votes(self) -> list[float]:
        """The votes that were given, abstentions left out."""
        return [vote["preference"] for vote in self.values["votes"] or () if vote["preference"] is not None]

    @property
    def preference(self) -> float:
        """Probability that chosen is preferred: the share of the votes where there are any."""
        if self.values["votes"]:
            return sum(self.votes) / len(self.votes) if self.votes else 0.5
        return float(self.values["probability"])

    @property
    def sign(self) -> int:
        """1 if the first of the sorted answers is preferred, -1 if the second is, 0 for a tie. A good and a bad label
        of one answer have opposite signs too."""
        chosen, rejected = self.answer_keys
        preference = self.preference
        return ((preference > 0.5) - (preference < 0.5)) * (1 if chosen <= rejected else -1)

    @property
    def source(self) -> str:
        return str(self.values["source"])

    @property
    def file(self) -> str:
        """The source without its line or row."""
        return Place.parse(self.source).file


class Records:
    """All rows of some files (each given as its tables), one after the other. Single rows are fetched from
    memory-mapped files; what is streamed is read batch by batch instead, since the pages of a mapped file stay and
    count as memory."""

    def __init__(self, files: Sequence[Sequence[Table]]) -> None:
        self._files = files
        self._rows = [Rows(tables) for tables in files]
        self.sizes = [len(rows) for rows in self._rows]
        self._starts = [0, *accumulate(self.sizes)]

    def __len__(self) -> int:
        return sum(self.sizes)

    def stream(self, columns: Iterable[str]) -> Iterator[Row]:
        """Every row in order, with these columns."""
        wanted, number = sorted(set(columns)), 0
        for file in self._files:
            for table in stream_columns(file, wanted):
                for at in range(0, table.num_rows, _SLICE):
                    for values in table.slice(at, _SLICE).to_pylist():
                        yield Row(number, values)
                        number += 1

    def row(self, number: int) -> Row:
        """One row with all its columns."""
        file = self.file_of(number)
        at = number - self._starts[file]
        (values,) = self._rows[file].slice(at, at + 1).to_pylist()
        return Row(number, values)

    def file_of(self, number: int) -> int:
        """Which of the files a row stands in."""
        return bisect_right(self._starts, number) - 1


def _text(messages: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(part for m in messages for part in (m["content"], m["extra"]) if part)


def _answer_key(messages: Sequence[Mapping[str, Any]]) -> str:
    return "".join(
        _APART + part for m in messages for part in (" ".join(m["content"].casefold().split()), m["extra"] or "")
    )
