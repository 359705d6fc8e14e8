"""Why a row cannot be used, and words for what it holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class RowError(Exception):
    """A row cannot be used. ``field`` names the part that is wrong, ``reason`` what was expected."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field
        self.reason = reason

    def __reduce__(self) -> tuple[type[RowError], tuple[str, str]]:
        return type(self), (self.field, self.reason)  # it crosses from process to process


class NoPair(RowError):
    """A row is valid but yields no pair by its nature, such as answers with equal scores."""


def kind(value: Any) -> str:
    """The type of a JSON value, in a word."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "nothing"}
    return names.get(type(value), "a number")


def names(row: Mapping[str, Any]) -> str:
    """The fields of a row, for a message: short, and printable whatever they are."""
    found = ", ".join(map(str, row)).encode("utf-8", "backslashreplace").decode()  # keys may hold half a surrogate pair
    return (found or "no fields")[:160]
