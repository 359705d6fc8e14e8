"""What containers do to nested values, undone: messages written as text into a cell, and the nulls of typed columns."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from stages.core.errors import RowError
from stages.core.formats.fields import Row

_WRITTEN = re.compile(r"""\s*(?:\[\s*)?\{\s*(['"])(?:role|from|content|value)\1\s*:""")
"""How messages begin when a program wrote them as text: as JSON, or as Python prints a list."""

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
    """Messages from their text; the text itself if it is some other data."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = _python_literal(text, field)
    items = value if isinstance(value, list) else [value]
    return value if all(map(_spoken, items)) else text


def _spoken(item: Any) -> bool:
    """Whether a value is a message; an answer may be JSON of its own, with a role of another kind."""
    if not isinstance(item, Mapping):
        return False
    return ("role" in item or "from" in item) and any(name in item for name in ("content", "value", "tool_calls"))


def _python_literal(text: str, field: str) -> Any:
    try:
        return ast.literal_eval(text.strip())  # constants only: it runs no code
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        reason = "begins like a list of messages and is neither JSON nor a Python list; write it as JSON (json.dumps)"
        raise RowError(field, reason) from None


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
