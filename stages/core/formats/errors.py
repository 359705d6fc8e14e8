"""Why a row cannot be used, and the decoding of one line of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class RowError(Exception):
    """A row cannot be used. ``field`` names the part that is wrong, ``reason`` what was expected."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field
        self.reason = reason


class NoPair(RowError):
    """A row is sound and gives no pair by its nature, such as answers of equal score."""


def decode_line(line: bytes) -> Mapping[str, Any]:
    """One line of JSONL as a mapping.

    Raises:
        RowError: not UTF-8, not JSON, or no object.
    """
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RowError("", f"not UTF-8 text (byte {error.start} of the line)") from None
    except json.JSONDecodeError as error:
        raise RowError("", f"not JSON: {error.msg} (column {error.colno})") from None
    except ValueError as error:
        raise RowError("", f"not JSON that can be read: {error}"[:120]) from None
    except RecursionError:
        raise RowError("", "JSON nested too deeply") from None
    if not isinstance(value, dict):
        raise RowError("", f"expected a JSON object, found {kind(value)}")
    return value


def kind(value: Any) -> str:
    """What a JSON value is, in a word."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "nothing"}
    return names.get(type(value), "a number")


def names(row: Mapping[str, Any]) -> str:
    """The fields of a row, for a message: short, and printable whatever they are."""
    found = ", ".join(map(str, row)).encode("utf-8", "backslashreplace").decode()  # keys may hold half a surrogate pair
    return (found or "no fields")[:160]
