"""Rows that hold several answers with scores or ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any

from stages.core.errors import NoPair, RowError, kind
from stages.core.formats.fields import Row, column, number, value
from stages.core.formats.messages import response
from stages.core.formats.pairs import asked_and_answered, prompt_of
from stages.core.records import Messages, PreferencePair

_SCORES = ("overall_score", "score", "rating", "reward")
_ABSENT = ("", "N/A", "n/a", "NA", "None")
Scored = list[tuple[float, Messages]]


def scored(row: Row, strategy: str, min_margin: float) -> list[PreferencePair]:
    """``completions``: objects with ``response`` and a score (``overall_score``, ``score``, ``rating``), or with
    ratings of several aspects, whose mean counts (UltraFeedback, arXiv:2310.01377). Answers without a score are left
    out."""
    found = value(row, "completions")
    if not isinstance(found, list) or not all(isinstance(item, Mapping) for item in found):
        raise RowError("completions", f"expected a list of objects, found {kind(found)}")
    answers: Scored = []
    for index, item in enumerate(found):
        where = f"completions[{index}]"
        text = item.get("response", item.get("content", item.get("text")))
        if text is None:
            raise RowError(where, "no response")
        score = _score(item, where)
        if score is not None:
            answers.append((score, response(text, where)))
    return _pairs(prompt_of(row), answers, strategy, min_margin)


def _score(item: Mapping[str, Any], where: str) -> float | None:
    for name in _SCORES:
        if item.get(name) is not None and item[name] not in _ABSENT:
            return number(item[name], f"{where}.{name}")
    aspects = item.get("annotations")
    if not isinstance(aspects, Mapping):
        return None
    ratings = [_rating(aspect) for aspect in aspects.values()]
    given = [number(r, f"{where}.annotations") for r in ratings if r is not None and r not in _ABSENT]
    return sum(given) / len(given) if given else None


def _rating(aspect: Any) -> Any:
    if isinstance(aspect, list):  # several annotators: the first, as the data set itself does
        aspect = aspect[0] if aspect else None
    return aspect.get("Rating", aspect.get("rating")) if isinstance(aspect, Mapping) else aspect


def ranked(row: Row, strategy: str, min_margin: float) -> list[PreferencePair]:
    """``responses`` with ``scores`` (higher is better) or ``ranks`` (1 is the best)."""
    answers = value(row, "responses")
    by = "scores" if column(row, "scores") else "ranks"
    marks = value(row, by)
    if not isinstance(answers, list) or not isinstance(marks, list) or len(answers) != len(marks):
        raise RowError(by, "expected one for each of the responses, in a list")
    sign = 1 if by == "scores" else -1
    found: Scored = []
    prompts: list[Messages] = []
    for index, (answer, mark) in enumerate(zip(answers, marks, strict=True)):
        if mark is None or mark in _ABSENT:
            continue
        asked, text = asked_and_answered(row, answer, f"responses[{index}]")
        prompts.append(asked)
        found.append((sign * number(mark, f"{by}[{index}]"), text))
    if any(asked != prompts[0] for asked in prompts):
        raise RowError("responses", "they answer different prompts")
    return _pairs(prompts[0] if prompts else prompt_of(row), found, strategy, min_margin)


def _pairs(asked: Messages, answers: Scored, strategy: str, min_margin: float) -> list[PreferencePair]:
    """Pairs of better and worse answers: the two ends, each with the next worse, or all of them.

    Raises:
        NoPair: no two answers differ both in text and by enough in score.
    """
    if len(answers) < 2:
        raise NoPair("", "fewer than two answers with a score")
    ordered = sorted(answers, key=lambda answer: -answer[0])  # stable: equals stay in the row's order
    chosen: Sequence[tuple[tuple[float, Messages], tuple[float, Messages]]]
    if strategy == "best_vs_worst":
        chosen = [(ordered[0], ordered[-1])]
    else:
        chosen = list(pairwise(ordered) if strategy == "adjacent" else combinations(ordered, 2))
    found = [
        PreferencePair(asked, better, worse)
        for (high, better), (low, worse) in chosen
        if high > low and high - low >= min_margin and better != worse
    ]
    if not found:
        raise NoPair("", "no two answers differ enough in score")
    return found
