"""Votes become probabilities by models of annotators or of answers, both from crowd-kit; how good annotators are."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from stages.data.votes import CHOSEN, REJECTED, TIE, Ballots, agreement

_EM_STEPS, _EM_TOLERANCE = 200, 1e-7
_MM_STEPS = 300

Matches = tuple[tuple[int, int, int, int], ...]
"""Two answers each, by number, with the half votes for the first and for the second."""


def dawid_skene(ballots: Ballots) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probability that chosen is preferred, for each pair, and the probability that a vote of each annotator's is true.

    Dawid and Skene (1979), by expectation-maximisation from the plain share: every annotator has a probability of
    each vote given the true label. A tie is a label of its own; a pair that is one with probability t and chosen's
    with probability c gets c + t/2. NaN for pairs and annotators without votes.

    Which answer is called chosen is the file's choice and says nothing about annotators: each pair goes in a
    second time with its answers and votes swapped. Else a file in which chosen is what most voted for teaches the
    model that chosen is always right.
    """
    probability = np.full(len(ballots.asked), np.nan)
    if not len(ballots.vote):
        return probability, np.full(len(ballots.annotators), np.nan)
    accuracy = np.zeros(len(ballots.annotators))
    with _their_warnings():
        import pandas as pd
        from crowdkit.aggregation.classification.dawid_skene import DawidSkene

        table = pd.DataFrame({
            "task": np.concatenate([ballots.pair, ballots.pair + np.int64(len(ballots.asked))]),
            "worker": np.tile(ballots.annotator, 2),
            "label": np.concatenate([ballots.vote, -ballots.vote]),
        })  # fmt: skip
        model = DawidSkene(n_iter=_EM_STEPS, tol=_EM_TOLERANCE).fit(table)
        truth = model.probas_.reindex(index=np.unique(ballots.pair), columns=[CHOSEN, TIE], fill_value=0.0)
        probability[truth.index] = truth[CHOSEN] + truth[TIE] / 2
        for label in (REJECTED, TIE, CHOSEN):
            if label in model.priors_.index:
                # How often an annotator who never gave a label is right about it is not in the table: never.
                right = model.errors_[label].xs(label, level="label").reindex(range(len(accuracy)), fill_value=0.0)
                accuracy += float(model.priors_[label]) * right.to_numpy()
    accuracy[np.bincount(ballots.annotator, minlength=len(accuracy)) == 0] = np.nan
    return probability.clip(0, 1), accuracy.clip(0, 1)


def bradley_terry(ballots: Ballots, chosen: NDArray[np.uint64], rejected: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Probability that chosen is preferred, for each pair: s_a / (s_a + s_b) with the strengths s of its answers.

    Bradley and Terry (1952). ``chosen`` and ``rejected`` name each pair's answers; an answer that has the same name in
    several pairs is one answer, so names have to differ between prompts. A tie is half a vote for each. Every answer
    also wins and loses half a vote against one imagined answer, which keeps the strengths of answers that never lose
    finite. NaN for pairs without votes.
    """
    size = len(ballots.asked)
    probability = np.full(size, np.nan)
    counts = ballots.counts
    balance = np.bincount(ballots.pair, weights=ballots.vote, minlength=size).astype(np.int64)
    voted = np.flatnonzero(counts)
    # Answers are numbered by their names, so that the order of rows changes nothing.
    answers, numbers = np.unique(np.concatenate([chosen[voted], rejected[voted]]), return_inverse=True)
    rows = np.stack([numbers[: len(voted)], numbers[len(voted) :], counts[voted] + balance[voted],
                     counts[voted] - balance[voted]], axis=1)  # fmt: skip
    for places in _together(rows[:, :2], len(answers)):
        own = rows[places]
        found, local = np.unique(own[:, :2], return_inverse=True)
        strengths = _strengths(len(found), _matches(local.reshape(-1, 2), own[:, 2:]))
        ours, theirs = strengths[local.reshape(-1, 2)].T
        probability[voted[places]] = ours / (ours + theirs)
    return probability


def quality(ballots: Ballots, accuracy: NDArray[np.float64] | None) -> list[dict[str, Any]]:
    """What is known of each annotator, as JSON: votes, ties among them, how often the others' majority was met (of
    ``compared`` votes, see ``stages.data.votes.agreement``) and, from a model that estimates it, ``accuracy``."""
    people = len(ballots.annotators)
    given = np.bincount(ballots.annotator, minlength=people).tolist()
    ties = np.bincount(ballots.annotator[ballots.vote == TIE], minlength=people).tolist()
    compared, agreed = agreement(ballots)
    columns = {
        "annotator": ballots.annotators, "votes": given, "ties": ties, "compared": compared.tolist(),
        "agreement": _numbers(agreed), **({} if accuracy is None else {"accuracy": _numbers(accuracy)}),
    }  # fmt: skip
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _numbers(values: NDArray[np.float64]) -> list[float | None]:
    return [None if np.isnan(value) else round(value, 6) for value in values.tolist()]


def _together(edges: NDArray[np.int64], nodes: int) -> list[NDArray[np.int64]]:
    """Places of the edges of each connected part of a graph: answers that were never compared, over whatever others,
    do not bear on each other, and the library's matrices grow with the square of the answers."""
    if not len(edges):
        return []
    _, parts = connected_components(coo_array((np.ones(len(edges)), edges.T), (nodes, nodes)), directed=False)
    part = parts[edges[:, 0]]
    order = np.argsort(part, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(part[order])) + 1)


def _matches(answers: NDArray[np.int64], wins: NDArray[np.int64]) -> Matches:
    """Half votes between every two answers, in one written form. An answer against itself tells nothing."""
    totals: dict[tuple[int, int], tuple[int, int]] = {}
    for (first, second), (won, lost) in zip(answers.tolist(), wins.tolist(), strict=True):
        if first > second:
            first, second, won, lost = second, first, lost, won
        if first != second:
            before = totals.get((first, second), (0, 0))
            totals[first, second] = (before[0] + won, before[1] + lost)
    return tuple((*pair, *score) for pair, score in sorted(totals.items()))


@lru_cache(maxsize=65536)  # most prompts have two answers and a few votes: the same few matches over and over
def _strengths(answers: int, matches: Matches) -> NDArray[np.float64]:
    """Strengths of answers, [answers], by the minorisation-maximisation of Hunter (2004)."""
    imagined = answers
    every = [*matches, *((answer, imagined, 1, 1) for answer in range(answers))]
    left, right, won, lost = np.array(every, np.int64).T
    winners = np.concatenate([np.repeat(left, won), np.repeat(right, lost)])
    losers = np.concatenate([np.repeat(right, won), np.repeat(left, lost)])
    with _their_warnings():
        import pandas as pd
        from crowdkit.aggregation.pairwise.bradley_terry import BradleyTerry

        table = pd.DataFrame({"left": winners, "right": losers, "label": winners})
        # Version 1.4 compares its result with itself to see whether it has converged, and with any tolerance above
        # zero stops after the second step.
        scores = BradleyTerry(n_iter=_MM_STEPS, tol=0.0).fit_predict(table)
    strengths: NDArray[np.float64] = scores.reindex(range(answers)).to_numpy(np.float64)
    return strengths


@contextmanager
def _their_warnings() -> Iterator[None]:
    """crowd-kit calls what pandas will drop; that is not for our users to read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
