"""Rows that hold two answers and which is preferred: one verdict, or several annotators' votes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from stages.core.errors import NoPair, RowError
from stages.core.formats.fields import Row, candidates, column, number, value
from stages.core.formats.messages import response
from stages.core.formats.pairs import asked_and_answered, different, prompt_of
from stages.core.records import Messages, PreferencePair, Vote

_ANNOTATOR = re.compile(r"annotator_?\d+")
_TIES = ("tie", "equal", "same", "both", "neither", "tie (bothbad)", "0.5")
_FIRST = ("a", "first", "model_a", "left", "chosen")
_SECOND = ("b", "second", "model_b", "right", "rejected")
_SLIGHTLY = 0.75
"""Probability for a slight preference on a scale that distinguishes slight and clear ones."""
_STRENGTH = re.compile(r"([ab])[- _]is[- _](slightly[- _])?better")


def annotator_columns(row: Row) -> list[str]:
    return sorted(name for name in row if isinstance(name, str) and _ANNOTATOR.fullmatch(name))


def choice(row: Row) -> list[PreferencePair]:
    """Two answers and which is better: 1 or 2 (0 is a tie), or 0 or 1 for answers numbered from 0, or a word
    (``model_a``, ``b``, ``tie``, ``a-is-slightly-better``), or the name of the answer's column. A tie becomes a
    probability of one half."""
    asked, first, second, names = _answers(row)
    named = column(row, "verdict")
    if named is None:
        raise RowError("verdict", "missing: which of the two answers is better")
    likely = _verdict(row[named], names, named)
    if likely is None:
        raise NoPair(named, "no verdict")
    return [_oriented(asked, first, second, likely)]


def alpaca_eval(row: Row) -> list[PreferencePair]:
    """``output_1``, ``output_2`` and ``preference`` from 1 (the first) to 2 (the second), with 1.5 a tie: the
    probability of the first is 2 - preference (AlpacaEval's annotations)."""
    asked, first, second, _ = _answers(row)
    mark = row.get("preference")
    if mark is None:
        raise NoPair("preference", "no verdict")
    mark = number(mark, "preference")
    if not 1 <= mark <= 2:
        raise RowError("preference", f"expected a number from 1 to 2, found {mark:g}")
    return [_oriented(asked, first, second, 2 - mark)]


def votes(row: Row) -> list[PreferencePair]:
    """Several annotators' votes on two answers: columns ``annotator1`` and so on, or ``votes`` as a list, as objects
    ``{annotator, vote}``, or as counts ``{chosen: 3, rejected: 1}``. Values are as in ``choice``; for chosen and
    rejected they are 1, 0 and 0.5; null is an abstention. The answer with more votes becomes chosen."""
    if column(row, "chosen") and column(row, "rejected"):
        asked, names = prompt_of(row), ("chosen", "rejected")
        first, second = (response(value(row, name), name) for name in names)
        pair_of_sides = True
    else:
        asked, first, second, names = _answers(row)
        pair_of_sides = False
    cast = [
        (annotator, _side_vote(vote, where) if pair_of_sides else _verdict(vote, names, where))
        for annotator, vote, where in _ballots(row)
    ]
    given = [likely for _, likely in cast if likely is not None]
    if not given:
        raise NoPair("votes", "every annotator abstained")
    swapped = sum(given) < len(given) / 2
    chosen, rejected = (second, first) if swapped else (first, second)
    counted = tuple(
        Vote(annotator=name, preference=likely if likely is None or not swapped else 1 - likely)
        for name, likely in cast
    )
    return [different(PreferencePair(asked, chosen, rejected, votes=counted))]


def _ballots(row: Row) -> list[tuple[str, Any, str]]:
    """Each vote with its annotator and the name of the field that holds it."""
    found = row.get("votes")
    if found is None:
        return [(name, row[name], name) for name in annotator_columns(row)]
    if isinstance(found, Mapping):
        counts = [(side, number(count, f"votes.{side}")) for side, count in found.items()]
        if any(count < 0 or count != int(count) for _, count in counts):
            raise RowError("votes", "expected how many annotators are for each side")
        sides = [side for side, count in counts for _ in range(int(count))]
        return [(f"{index}", side, "votes") for index, side in enumerate(sides)]
    if not isinstance(found, list):
        raise RowError("votes", f"expected a list, or counts by side, found {found!r:.40}")
    ballots = []
    for index, vote in enumerate(found):
        where = f"votes[{index}]"
        if isinstance(vote, Mapping):
            name = vote.get("annotator", vote.get("worker", vote.get("id", index)))
            vote = vote.get("vote", vote.get("preference", vote.get("label")))
        else:
            name = index
        ballots.append((str(name), vote, where))
    return ballots


def _answers(row: Row) -> tuple[Messages, Messages, Messages, tuple[str, str]]:
    """The prompt, both answers, and what the answers are called."""
    names = candidates(row)
    if names is not None:
        given: Any = [row[name] for name in names]
    else:
        given = value(row, "responses")
        names = ("0", "1")
        if not isinstance(given, list) or len(given) != 2:
            raise RowError("responses", "expected two answers for the verdict to choose from")
    (asked, first), (other, second) = (
        asked_and_answered(row, side, name) for side, name in zip(given, names, strict=True)
    )
    if asked != other:
        raise RowError(names[1], f"answers another prompt than {names[0]}")
    return asked, first, second, names


def _verdict(given: Any, names: tuple[str, str], field: str) -> float | None:
    """How likely the first answer is the better one: 1, 0, one half for a tie; None for an abstention."""
    text = str(given).strip().lower() if isinstance(given, str | int | float) and not isinstance(given, bool) else None
    if given is None or text == "":
        return None
    if text is None:
        raise RowError(field, f"expected which answer is better, found {given!r:.40}")
    if strength := _STRENGTH.fullmatch(text):
        likely = _SLIGHTLY if strength[2] else 1.0
        return likely if strength[1] == "a" else 1 - likely
    text = text.removesuffix(".0")
    zero_based = names[0].endswith("0")
    sides = ("0", "1") if zero_based else ("1", "2")
    if text in _TIES or (text == "0" and not zero_based):
        return 0.5
    if text == sides[0] or text in _FIRST or text == names[0].lower():
        return 1.0
    if text == sides[1] or text in _SECOND or text == names[1].lower():
        return 0.0
    expected = f"{sides[0]} or {sides[1]}, {names[0]} or {names[1]}, a or b, or tie"
    raise RowError(field, f"expected which answer is better ({expected}), found {given!r:.40}")


def _side_vote(given: Any, field: str) -> float | None:
    """The same for answers that are already called chosen and rejected."""
    if isinstance(given, str) and given.strip().lower() in ("chosen", "rejected", *_TIES):
        return _verdict(given, ("chosen", "rejected"), field)
    if given is None or given == "":
        return None
    mark = number(given, field)
    if mark not in (0, 0.5, 1):
        raise RowError(field, f"expected 1 (chosen), 0 (rejected) or 0.5 (a tie), found {mark:g}")
    return mark


def _oriented(asked: Messages, first: Messages, second: Messages, likely: float) -> PreferencePair:
    """The likelier answer as chosen."""
    if likely < 0.5:
        first, second, likely = second, first, 1 - likely
    return different(PreferencePair(asked, first, second, probability=likely))
