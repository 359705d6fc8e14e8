"""Rollouts become rows for a judge, and what it says becomes judgements and verdicts, checked."""

from __future__ import annotations

import json
import math
import numbers
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, groupby
from typing import Any

from stages.base import StageError
from stages.core.records import Rollout, messages_of
from stages.io.artifact import Table
from stages.io.tables import read_table
from stages.judge.protocol import Judged, Judgement, NoVerdict, Row, Verdict


def read_rollouts(table: Table, ids: bool = False) -> list[Rollout]:
    """Rollouts, by default without their token ids, which few who judge ask for: they take far more memory than the
    texts."""
    names = [name for name in Rollout.__dataclass_fields__ if ids or name not in ("prompt_ids", "ids")]
    rows = read_table(table.path).select(names).to_pylist()
    return [Rollout(**{**row, "messages": messages_of(row["messages"])}) for row in rows]


def rows_of(rollouts: Sequence[Rollout], compares: bool) -> list[Row]:
    """A row for every prompt, in order. For a judge that ``compares`` all its answers are to be, by two."""
    rows = []
    for _, group in groupby(rollouts, lambda rollout: rollout.prompt_id):
        answers = tuple(group)
        rows.append(_row(answers, tuple(combinations(range(len(answers)), 2)) if compares else ()))
    return rows


def rows_against(policy: Sequence[Rollout], baseline: Sequence[Rollout]) -> list[Row]:
    """A row for every prompt that both have answered; each sample of the first is compared with that of the second."""
    other: dict[str, dict[int, Rollout]] = defaultdict(dict)
    for each in baseline:
        other[each.prompt_id][each.sample] = each
    rows = []
    for prompt_id, group in groupby(policy, lambda rollout: rollout.prompt_id):
        ours = [each for each in group if each.sample in other[prompt_id]]
        theirs = [other[prompt_id][each.sample] for each in ours]
        if ours:
            rows.append(_row((*ours, *theirs), tuple((n, len(ours) + n) for n in range(len(ours)))))
    return rows


def _row(answers: tuple[Rollout, ...], comparisons: tuple[tuple[int, int], ...]) -> Row:
    first = answers[0]
    metadata: dict[str, Any] = json.loads(first.metadata) if first.metadata else {}
    return Row(first.prompt_id, first.messages, answers, first.tools, metadata, comparisons)


@dataclass
class Answered:
    """What a judge said of some rows, in their order."""

    judgements: list[Judgement] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    refused: list[tuple[Row, NoVerdict]] = field(default_factory=list)


def answered(name: str, rows: Sequence[Row], said: Sequence[Judged], compares: bool) -> Answered:
    """What a judge owes, and nothing else. A score that is not finite, or a preference that is not between 0 and 1, is
    none.

    Raises:
        StageError: it left something out, said something twice, or spoke of what it was not asked.
    """
    by_row = _by_row(name, rows, said)
    answer = Answered()
    for row in rows:
        owed: list[tuple[int, ...]] = [*row.comparisons] if compares else [(n,) for n in range(len(row.responses))]
        found = by_row[row.prompt_id]
        if missing := [places for places in owed if places not in found]:
            raise StageError(
                f"judge {name}: prompt {row.prompt_id}: said nothing of {_named(row, missing[0])}; it owes "
                + ("a Verdict for each comparison" if compares else "a Judgement for each response")
            )
        if len(found) > len(owed):
            other = next(places for places in found if places not in owed)
            raise StageError(f"judge {name}: prompt {row.prompt_id}: was not asked of {_named(row, other)}")
        for places in owed:
            _take(answer, row, _checked(name, found[places], places))
    return answer


def _by_row(name: str, rows: Sequence[Row], said: Sequence[Judged]) -> dict[str, dict[tuple[int, ...], Judged]]:
    places = {row.prompt_id: {each.sample: n for n, each in enumerate(row.responses)} for row in rows}
    found: dict[str, dict[tuple[int, ...], Judged]] = {row.prompt_id: {} for row in rows}
    for each in said if isinstance(said, Iterable) else [said]:
        if not isinstance(each, Judgement | Verdict | NoVerdict):
            kind = type(each).__name__
            raise StageError(f"judge {name}: gave a {kind}; expected a list of Judgement, Verdict or NoVerdict")
        if each.prompt_id not in found:
            raise StageError(f"judge {name}: speaks of prompt {each.prompt_id!r}, which it was not asked of")
        if isinstance(each, Verdict):
            key: tuple[int, ...] = (each.first, each.second)
        elif isinstance(each, NoVerdict):
            key = each.places
        else:
            key = (places[each.prompt_id].get(each.sample, -1),)
        if key in found[each.prompt_id]:
            raise StageError(f"judge {name}: prompt {each.prompt_id}: judged the same twice: {each!r:.200}")
        found[each.prompt_id][key] = each
    return found


def _take(answer: Answered, row: Row, said: Judged) -> None:
    if isinstance(said, Judgement):
        answer.judgements.append(said)
    elif isinstance(said, Verdict):
        answer.verdicts.append(said)
    else:
        answer.refused.append((row, said))


def _checked(name: str, said: Judged, places: tuple[int, ...]) -> Judged:
    """What was said, or why it does not count."""
    if isinstance(said, NoVerdict):
        return said
    value = said.score if isinstance(said, Judgement) else said.preference
    known = isinstance(value, numbers.Real) and math.isfinite(value)
    if isinstance(said, Judgement):
        why = "" if known else f"the score of judge {name} is {value!r:.40}, not a finite number"
    else:
        inside = known and 0 <= value <= 1
        why = "" if inside else f"the verdict of judge {name} is {value!r:.40}, not a preference between 0 and 1"
    return NoVerdict(said.prompt_id, places, f"{why}: {said.reason}" if said.reason else why) if why else said


def _named(row: Row, places: Sequence[int]) -> str:
    known = [f"sample {row.responses[n].sample}" for n in places if 0 <= n < len(row.responses)]
    return " against ".join(known) if len(known) == len(places) else "an answer that there is not"


def shares_of_wins(verdicts: Sequence[Verdict]) -> dict[tuple[str, int], float]:
    """By prompt and answer, the mean preference for it over its comparisons."""
    won: dict[tuple[str, int], list[float]] = defaultdict(list)
    for each in verdicts:
        won[each.prompt_id, each.first].append(each.preference)
        won[each.prompt_id, each.second].append(1 - each.preference)
    return {answer: sum(preferences) / len(preferences) for answer, preferences in won.items()}


def scores(rows: Sequence[Row], verdicts: Sequence[Verdict]) -> Iterator[Judgement]:
    """A score for each response from its comparisons with others: the mean preference for it, its share of wins where a
    tie is half a one. One that is alone has 0.5, one without any verdict has no score."""
    won = shares_of_wins(verdicts)
    for row in rows:
        for place, response in enumerate(row.responses):
            if (share := won.get((row.prompt_id, place))) is not None:
                yield Judgement(row.prompt_id, response.sample, share)
            elif len(row.responses) == 1:
                yield Judgement(row.prompt_id, response.sample, 0.5, "nothing to compare it with")


def by_samples(row: Row, verdict: Verdict) -> Verdict:
    """A verdict with the responses' sample numbers instead of their places."""
    first, second = (row.responses[place].sample for place in (verdict.first, verdict.second))
    return replace(verdict, first=first, second=second)
