"""Training prompts that share text with held-out prompts.

Brown et al. 2020 (GPT-3, arXiv:2005.14165, appendix C) call a test example contaminated that has a 13-gram in common
with the training data, and leave n-grams out of account that stand in more than ten documents: common phrases.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.core.records import PROMPTS, prompt_key
from stages.data.quality.rows import Row
from stages.data.quality.text import ngrams, words
from stages.io.artifact import Table
from stages.io.tables import read_table

_COMMON = 10
"""An n-gram that stands in more held-out prompts than these is taken for a phrase or a template."""
_SLICE = 1000


class Contamination:
    """Prompts that are the same as a held-out prompt (``prompt_key``), or of which a message shares ``ngram`` words in
    a row with one. System messages do not count: many prompts have the same one."""

    columns: tuple[str, ...] = ("prompt", "prompt_key")

    def __init__(self, heldout: Sequence[Table], ngram: int) -> None:
        self._ngram = ngram
        self.sources: list[str] = []
        self._keys: dict[str, int] = {}
        owners, grams = array("i"), array("Q")
        for row in _prompts(heldout):
            index = len(self.sources)
            self.sources.append(str(row["source"]))
            self._keys.setdefault(prompt_key(row["messages"]), index)
            own = np.unique(np.concatenate([np.zeros(0, np.uint64), *self._grams(row["messages"])]))
            grams.frombytes(own.tobytes())
            owners.extend([index] * len(own))
        values, first, counts = np.unique(np.asarray(grams, np.uint64), return_index=True, return_counts=True)
        rare = counts <= _COMMON
        self._values = values[rare]
        self._owners: NDArray[np.int32] = np.asarray(owners, np.int32)[first[rare]]
        self._hits = array("i")

    def see(self, row: Row) -> None:
        self._hits.append(self._hit(row))

    def hits(self) -> NDArray[np.int32]:
        """For each row the held-out prompt (an index into ``sources``) that it shares text with, or -1."""
        return np.asarray(self._hits, np.int32)

    def found(self) -> NDArray[np.bool_]:
        return np.asarray(self.hits() >= 0)

    def shared(self, row: Row) -> str:
        """The words that a row's prompt has in common with a held-out one, or "" if it is the same prompt."""
        if row.prompt_key in self._keys:
            return ""
        for message in _messages(row.values["prompt"]):
            tokens = words(message["content"])
            at = np.flatnonzero(np.isin(ngrams(tokens, self._ngram), self._values))
            if len(at):
                return " ".join(tokens[at[0] : at[0] + self._ngram])
        return ""

    def _hit(self, row: Row) -> int:
        if not self.sources:
            return -1
        if (same := self._keys.get(row.prompt_key)) is not None:
            return same
        for grams in self._grams(row.values["prompt"]):
            at = np.searchsorted(self._values, grams)
            at[at == len(self._values)] = 0
            hits = at[self._values[at] == grams] if len(self._values) else at[:0]
            if len(hits):
                return int(self._owners[hits[0]])
        return -1

    def _grams(self, messages: Iterable[Mapping[str, Any]]) -> list[NDArray[np.uint64]]:
        return [ngrams(words(message["content"]), self._ngram) for message in _messages(messages)]


def _messages(messages: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [message for message in messages if message["role"] != "system"]


def _prompts(tables: Sequence[Table]) -> Iterable[Mapping[str, Any]]:
    for each in tables:
        table = read_table(each.path).select(PROMPTS.names)
        for at in range(0, table.num_rows, _SLICE):
            yield from table.slice(at, _SLICE).to_pylist()
