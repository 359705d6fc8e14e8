"""What containers do to nested values, undone: messages written as text into a cell, and the nulls of typed columns."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from stages.core.errors import RowError
from stages.core.formats.fields import Row
from stages.core.formats.messages import NAMED_ROLES

_WRITTEN = re.compile(r"""\s*(?:\[\s*)?\{\s*(['"])(?:role|from|content|value)\1\s*:.*\}\s*\]?\s*\Z""", re.DOTALL)
"""How messages look when a program wrote them as text: as JSON, or as Python prints a list."""
_FIRST = frozenset("[{ \n\t\r")


def opened(row: Row, typed: bool) -> Row:
    """A row with messages where a cell holds the text of messages.

    Args:
        typed: the container gives all objects of a column the same fields (Parquet, Arrow), so that a null says that an
            object does not have the field. Elsewhere a null inside a value is the user's own and stays.

    Raises:
        RowError: a text begins like messages and cannot be read as such.
    """
    changed: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, str):
            if value[:1] in _FIRST and _WRITTEN.match(value):
                changed[name] = _messages(value, str(name))
        elif typed and isinstance(value, list | dict):
            changed[name] = _without_nulls(value)
    return {**row, **changed} if changed else row


def _messages(text: str, field: str) -> Any:
    """Messages from their text; the text itself if it is something else, such as an answer that is JSON or code."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(text.strip())  # constants only: it runs no code
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            if _PRINTED.match(text):
                reason = "looks like a list of messages and is neither JSON nor a Python list; write it as JSON"
                raise RowError(field, f"{reason} (json.dumps)") from None
            return text
    items = value if isinstance(value, list) else [value]
    return value if items and all(map(_spoken, items)) else text


_PRINTED = re.compile(r"\s*\[\s*\{\s*'(?:role|content)'\s*:.*'(?:role|content)'\s*:.*\}\s*\]\s*\Z", re.DOTALL)
"""A list of messages as numpy prints it, without commas."""


def _spoken(item: Any) -> bool:
    """Whether a value is a message; an answer may be JSON of its own, with a role of another kind."""
    if not isinstance(item, Mapping):
        return False
    known = item.get("role", item.get("from")) in NAMED_ROLES
    return known and any(name in item for name in ("content", "value", "tool_calls"))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
