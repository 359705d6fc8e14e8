"""Columns that a row has and that nothing reads: named, since labels that are passed over become certain in silence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from stages.core.errors import RowError
from stages.core.formats.fields import VOTE_COUNTS, Row, candidates, column

_FIELDS: Mapping[str, tuple[str, ...]] = {
    "preference": ("prompt", "chosen", "rejected"),
    "transcript": ("chosen", "rejected"),
    "sharegpt": ("prompt", "chosen", "rejected"),
    "labelled": ("prompt", "completion", "label"),
    "scored": ("prompt", "completions"),
    "ranked": ("prompt", "responses", "scores", "ranks"),
    "votes": ("prompt", "chosen", "rejected", "responses", "votes"),
    "choice": ("prompt", "responses", "verdict"),
    "alpaca_eval": ("prompt", "verdict"),
    "prompt": ("prompt",),
}
"""What each shape reads; ``prompt`` is a row of a prompts file."""
_COMMON = ("system", "tools", "kind", "weight", "preference_probability")
_MEDIA = re.compile(r"(?i)(?:images?|pictures?|pixel_values|audios?|speech|videos?)(?:_(?:path|url|file|bytes)s?)?")
_TELLING: Mapping[str, re.Pattern[str]] = {
    "preference_probability": re.compile(r"(?i)p_chosen|(.*_)?(prob|probability|confidence|soft_label)(_chosen)?"),
    "weight": re.compile(r"(?i)(.*_)?(weight|importance)s?(_.*)?"),
    "votes": re.compile(r"(?i)(.*_)?(votes?|annotations?|annotators?)"),
    "label": re.compile(r"(?i)(.*_)?(labels?|winner|preferred|verdict|is_(good|bad|correct|safe))"),
}  # fmt: skip
"""Rondo's name for what such a column probably holds."""


def unused(row: Row, shape: str, mapped: Iterable[str], ignore: Iterable[str]) -> list[str]:
    """The columns of a row that are not null and that nothing reads.

    Args:
        row: with the user's fields in their places.
        mapped: the columns that the user's fields lead to.
        ignore: those that are left alone on purpose.
    """
    used = {column(row, name) for name in (*_FIELDS[shape], *_COMMON)} | {*mapped, *ignore}
    if shape in ("votes", "choice", "alpaca_eval"):
        used |= {*(candidates(row) or ()), *VOTE_COUNTS}
        used |= {name for name in row if re.fullmatch(r"annotator_?\d+", str(name))}
    if column(row, "prompt") == "instruction":
        used.add("input")
    return [str(name) for name, value in row.items() if name not in used and value is not None and value != []]


def entry(name: str) -> str | None:
    """The entry of a source for a column whose name says that it tells something about a pair, or None. What a label of
    a pair means, only a function of the user's can say."""
    field = next((field for field, pattern in _TELLING.items() if pattern.fullmatch(name)), None)
    if field is None:
        return None
    return 'format: {use: "module:function"}' if field == "label" else f"fields: {{{field}: {name}}}"


@lru_cache(maxsize=4096)  # asked for every column of every row
def _is_media(name: object) -> bool:
    return isinstance(name, str) and _MEDIA.fullmatch(name) is not None


def refuse_media(row: Mapping[str, Any], ignore: Iterable[str] | None) -> None:
    """Args:
        ignore: columns that are left alone on purpose; None where a spec cannot name any.

    Raises:
        RowError: the row has an image or a sound, which the policy would not get.
    """
    for name in row:
        if _is_media(name) and row[name] and row[name] != [None] and name not in (ignore or ()):
            todo = f"give the source ignore: [{name}]" if ignore is not None else "remove the column"
            raise RowError(name, f"only text can be used; to leave it out, {todo}")
