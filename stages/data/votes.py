"""Annotators' votes on pairs as columns, and what follows from counting them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

REJECTED, TIE, CHOSEN = -1, 0, 1
"""What each vote means."""


@dataclass(frozen=True)
class Ballots:
    """The votes of one source.

    ``pair``, ``annotator`` and ``vote`` have one entry per vote cast; the first two are places among the source's
    pairs and in ``annotators``. Abstentions are not included. ``asked`` has one entry per pair: whether annotators
    were asked about it, even if all of them abstained.
    """

    annotators: tuple[str, ...]
    asked: NDArray[np.bool_]
    pair: NDArray[np.int32]
    annotator: NDArray[np.int32]
    vote: NDArray[np.int8]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Votes on each pair."""
        return np.bincount(self.pair, minlength=len(self.asked))


class BallotBox:
    """Collects the votes of a source's pairs as they come, nine bytes per vote."""

    def __init__(self) -> None:
        self._names: dict[str, int] = {}
        self._asked: list[NDArray[np.bool_]] = []
        self._votes: list[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int8]]] = []
        self._pairs = 0

    def add(self, votes: pa.ChunkedArray) -> None:
        """The next pairs' votes: the column ``votes`` of ``records.PAIRS``. Pairs without votes have none, or null."""
        votes = votes.combine_chunks()
        self._asked.append(pc.fill_null(pc.greater(pc.list_value_length(votes), 0), False).to_numpy(False))
        given = pc.list_flatten(votes)
        if len(given):
            pair = pc.list_parent_indices(votes).to_numpy() + self._pairs
            preference = pc.struct_field(given, "preference").to_numpy(False).astype(np.float64)
            names = pc.fill_null(pc.struct_field(given, "annotator"), "").dictionary_encode()
            codes = [self._names.setdefault(name, len(self._names)) for name in names.dictionary.to_pylist()]
            annotator = np.array(codes, np.int32)[names.indices.to_numpy()]
            there = ~np.isnan(preference)  # null became NaN: an abstention
            vote = np.sign(preference[there] - 0.5).astype(np.int8)
            self._votes.append((pair[there].astype(np.int32), annotator[there], vote))
        self._pairs += len(votes)

    def close(self) -> Ballots | None:
        """All votes, or None if nobody was asked. Annotators are sorted by name, so that nothing depends on
        whose vote came first."""
        asked = np.concatenate([np.zeros(0, np.bool_), *self._asked])
        if not asked.any():
            return None
        pair, annotator, vote = (np.concatenate(parts) for parts in zip(*self._votes, strict=True))
        names = sorted(self._names)
        place = np.empty(len(names), np.int32)
        place[[self._names[name] for name in names]] = np.arange(len(names), dtype=np.int32)
        return Ballots(tuple(names), asked, pair, place[annotator], vote)


def share(ballots: Ballots) -> NDArray[np.float64]:
    """The share of the votes on each pair that prefer chosen, a tie counting half; NaN where there are none."""
    counts = ballots.counts
    total = np.bincount(ballots.pair, weights=ballots.vote, minlength=len(counts))
    found = np.full(len(counts), np.nan)
    np.divide(total + counts, 2 * counts, out=found, where=counts > 0)
    return found


def agreement(ballots: Ballots) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """How often each annotator votes with the majority of the others who voted on the same pair.

    Returns:
        For each annotator, the votes that were compared (those on pairs where the others' votes lean to one side) and
        the share of them that lean to that side too (a tie does not); NaN where none was compared.
    """
    total = np.bincount(ballots.pair, weights=ballots.vote, minlength=len(ballots.asked))
    others = np.sign(total[ballots.pair] - ballots.vote)
    people = len(ballots.annotators)
    compared = np.bincount(ballots.annotator[others != 0], minlength=people)
    agreed = np.bincount(ballots.annotator[(others != 0) & (others == ballots.vote)], minlength=people)
    found = np.full(people, np.nan)
    np.divide(agreed, compared, out=found, where=compared > 0)
    return compared, found
