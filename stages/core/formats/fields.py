"""Where a row's fields are: the user's mapping, other data sets' names, and values that mean the same."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from stages.core.errors import RowError, kind, names
from stages.hints import closest

Row = Mapping[str, Any]

ALIASES = {
    "prompt": ("prompt", "instruction", "question", "query", "messages", "conversations", "conversation", "input"),
    "chosen": ("chosen", "chosen_response", "chosen_messages", "preferred_output"),
    "rejected": ("rejected", "rejected_response", "rejected_messages", "non_preferred_output"),
    "completion": ("completion", "response", "output", "answer"),
    "label": ("label", "kto_tag"),
    "completions": ("completions",),
    "responses": ("responses", "answers", "candidates"),
    "scores": ("scores", "ratings"),
    "ranks": ("ranks", "ranking", "rank"),
    "verdict": ("verdict", "winner", "preferred", "preference", "better_response_id", "better", "label", "choice"),
    "votes": ("votes",),
    "system": ("system", "system_prompt"),
    "tools": ("tools", "functions"),
    "kind": ("kind",),
    "weight": ("weight",),
    "preference_probability": ("preference_probability",),
}
"""Rondo's name for a field, and what it is called in data sets, the likeliest first."""
CANDIDATES = (
    ("first", "second"), ("output_1", "output_2"), ("response_1", "response_2"), ("response1", "response2"),
    ("response_0", "response_1"), ("response_a", "response_b"), ("completion_a", "completion_b"),
    ("output_a", "output_b"), ("answer_a", "answer_b"),
)  # fmt: skip
"""What two answers are called when a verdict says which is better."""
VOTE_COUNTS = ("votes_chosen", "votes_rejected")
"""Columns with the numbers of votes for each side."""
_YES, _NO = ("true", "yes", "good", "1"), ("false", "no", "bad", "0")
_NEGATION = "not "


def mapped(row: Row, fields: Mapping[str, str]) -> Row:
    """A row with the fields named in the user's mapping, ``{prompt: question, chosen: answers.0.text}``.

    A dotted path leads into objects and lists unless a column has exactly that name. ``not column`` inverts a yes or
    no.

    Raises:
        RowError: there is no such column.
    """
    if not fields:
        return row
    found = dict(row)
    for name, path in fields.items():
        negated = path.startswith(_NEGATION) and path not in row
        value = _lookup(row, path.removeprefix(_NEGATION) if negated else path, name)
        found[name] = not yes_or_no(value, name) if negated else value
    return found


def counted(row: Row) -> Row:
    """A row with ``votes`` where it has a column with the count of each side."""
    if row.get("votes") is not None or any(row.get(name) is None for name in VOTE_COUNTS):
        return row
    return {**row, "votes": {name.removeprefix("votes_"): row[name] for name in VOTE_COUNTS}}


def _lookup(row: Row, path: str, name: str) -> Any:
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            close = closest(path, map(str, row))
            found = f"did you mean {close!r}?" if close else f"the row has {names(row)}"
            raise RowError(name, f"no column {path!r}, which fields.{name} names; {found}")
    return value


def column(row: Row, name: str) -> str | None:
    """The column that holds a field, or None."""
    for alias in ALIASES[name]:  # a loop: this is called a dozen times per row
        if row.get(alias) is not None:
            return alias
    return None


def value(row: Row, name: str) -> Any:
    """A field's value.

    Raises:
        RowError: there is none.
    """
    found = column(row, name)
    if found is None:
        raise RowError(name, f"missing; the row has {names(row)}")
    return row[found]


def candidates(row: Row) -> tuple[str, str] | None:
    """The names of two answers that a verdict is about, or None."""
    for pair in CANDIDATES:
        if row.get(pair[0]) is not None and row.get(pair[1]) is not None:
            return pair
    return None


def number(value: Any, field: str) -> float:
    """A finite number; one written as text counts, a boolean does not."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise RowError(field, f"expected a number, found {value!r:.40}") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        shown = f"{value!r:.40}" if isinstance(value, int | float) else kind(value)
        raise RowError(field, f"expected a finite number, found {shown}")
    return float(value)


def yes_or_no(value: Any, field: str) -> bool:
    """A boolean, possibly as 0 or 1 or a word."""
    text = str(value).strip().lower() if isinstance(value, bool | int | str) else ""
    if text in _YES:
        return True
    if text in _NO:
        return False
    raise RowError(field, f"expected true (a good answer) or false (a bad one), found {value!r:.40}")


def probability(value: Any, field: str) -> float:
    """A number from 0 to 1."""
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if not numeric or not 0 <= value <= 1:  # also false for NaN
        raise RowError(field, f"expected a number from 0 to 1, found {value!r:.40}")
    return float(value)
