from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stages.core.records import PAIRS
from stages.data.votes import CHOSEN, REJECTED, TIE, BallotBox, Ballots, agreement, share

Votes = Sequence[tuple[str, float | None]]


def column(pairs: Sequence[Votes | None]) -> pa.ChunkedArray:
    rows: list[Any] = [p and [{"annotator": name, "preference": value} for name, value in p] for p in pairs]
    return pa.chunked_array([pa.array(rows, PAIRS.field("votes").type)])


def ballots(*pairs: Votes | None) -> Ballots:
    box = BallotBox()
    box.add(column(pairs))
    found = box.close()
    assert found is not None
    return found


def test_the_share_counts_a_tie_as_half_a_vote_and_an_abstention_not_at_all() -> None:
    found = ballots(
        [("a", 1.0), ("b", 1.0), ("c", 0.0)],
        [("a", 0.0), ("b", 0.5)],
        [("a", 1.0), ("b", None), ("c", None)],
        [("a", 0.5)],
        [("a", None)],
        [],
        None,
    )
    np.testing.assert_array_equal(share(found), [2 / 3, 0.25, 1.0, 0.5, np.nan, np.nan, np.nan])
    assert found.counts.tolist() == [3, 2, 1, 1, 0, 0, 0]
    assert found.asked.tolist() == [True, True, True, True, True, False, False]


def test_votes_for_rejected_give_a_probability_below_one_half() -> None:
    assert share(ballots([("a", 0.0), ("b", 0.0), ("c", 1.0)])).tolist() == [pytest.approx(1 / 3)]


def test_votes_come_in_any_number_of_parts() -> None:
    pairs: list[Votes | None] = [[("b", 1.0)], [("a", 0.0), ("b", 0.5)], None, [("c", 0.0), ("a", None)]]
    whole, parts = ballots(*pairs), BallotBox()
    parts.add(column(pairs[:2]))
    parts.add(column([]))
    parts.add(column(pairs[2:]).slice(0, 1))
    parts.add(column(pairs).slice(3))
    found = parts.close()
    assert found is not None
    assert found.annotators == whole.annotators == ("a", "b", "c")
    for name in ("asked", "pair", "annotator", "vote"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
    assert whole.vote.tolist() == [CHOSEN, REJECTED, TIE, REJECTED]
    assert [whole.annotators[n] for n in whole.annotator] == ["b", "a", "b", "c"]


def test_pairs_that_nobody_was_asked_about_have_no_ballots() -> None:
    box = BallotBox()
    assert box.close() is None
    box.add(column([None, []]))
    assert box.close() is None
    box.add(column([[("a", None)]]))
    assert box.close() is not None


def test_an_annotator_is_compared_with_the_others_alone() -> None:
    found = ballots(
        [("a", 1.0), ("b", 1.0), ("c", 0.0)],  # a and b: the others are split; c: against both
        [("a", 1.0), ("b", 0.0)],  # each against the other
        [("a", 1.0), ("b", 0.5), ("c", 1.0)],  # a and c agree; b is not on their side
        [("a", 0.0)],  # alone
    )
    compared, agreed = agreement(found)
    assert compared.tolist() == [2, 2, 2]
    assert agreed.tolist() == [0.5, 0.0, 0.5]
    _, alone = agreement(ballots([("a", 1.0)], [("b", 0.5), ("a", 0.0)]))
    assert np.isnan(alone[0])
    assert alone[1] == 0.0
