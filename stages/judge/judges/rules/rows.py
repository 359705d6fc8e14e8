"""What the rules read of a prompt's row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stages.judge.protocol import Row


class Unjudged(Exception):
    """A rule that cannot be checked, and why: its reference is not in the row, or is none."""


def given(row: Row, field: str, rule: str) -> Any:
    """A field of the row, which may not be null.

    Raises:
        Unjudged: there is none.
    """
    value = row.metadata.get(field)
    if value is None:
        raise Unjudged(f"{rule}: the prompt's row has no field {field!r}{_known(row)}")
    return value


def first_given(row: Row, fields: Sequence[str], rule: str) -> Any:
    """The first of the fields that the row has.

    Raises:
        Unjudged: it has none of them.
    """
    for field in fields:
        if row.metadata.get(field) is not None:
            return row.metadata[field]
    raise Unjudged(f"{rule}: the prompt's row has no field {', '.join(map(repr, fields))}{_known(row)}")


def _known(row: Row) -> str:
    return f"; it has {', '.join(sorted(row.metadata))[:200]}" if row.metadata else "; it has none beside the prompt"
