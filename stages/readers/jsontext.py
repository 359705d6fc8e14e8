"""JSON text as a row; everything that JSON libraries read differently or not at all is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from stages.core.errors import RowError

MAX_DEPTH = 100
_MAX_DIGITS = 308  # what a float can hold


def decode(text: bytes) -> Mapping[str, Any]:
    """One JSON object.

    Raises:
        RowError: not UTF-8, not JSON, not an object, a repeated key, a number that no float holds, NaN, objects
            nested more than ``MAX_DEPTH`` deep, or half a surrogate pair.
    """
    try:
        value = _DECODER.decode(text.decode())
    except UnicodeDecodeError as error:
        raise RowError("", f"not UTF-8 text (byte {error.start})") from None
    except json.JSONDecodeError as error:
        if b"\0" in text:
            raise RowError("", f"NUL byte (byte {text.index(0)})") from None
        raise RowError("", f"not JSON: {error.msg} (column {error.pos + 1})") from None
    except RecursionError:
        raise RowError("", f"nested more than {MAX_DEPTH} deep") from None
    if not isinstance(value, dict):
        raise RowError("", f"expected a JSON object, found {_kind(value)}")
    if text.count(b"{") + text.count(b"[") > MAX_DEPTH and _deep(value):
        raise RowError("", f"nested more than {MAX_DEPTH} deep")
    if b"\\ud" in text or b"\\uD" in text:
        _whole_characters(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise RowError(_printable(twice), "the key appears twice in one object")
    return made


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise RowError("", f"the number {text:.40} is too big")
    return value


def _int(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise RowError("", f"the number {text[:20]}... of {len(text)} digits is too big")
    return int(text)


def _constant(text: str) -> NoReturn:
    raise RowError("", f"{text} is not JSON; use null")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_float, parse_int=_int, parse_constant=_constant)


def _deep(value: Any) -> bool:
    """Counted without recursion, so that the answer does not depend on the caller's stack."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _whole_characters(row: Mapping[str, Any]) -> None:
    for key, value in row.items():
        try:
            json.dumps([key, value], ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise RowError(_printable(key), "half a surrogate pair, which no text encoding can hold") from None


def _printable(text: str) -> str:
    return text[:100].encode("utf-8", "backslashreplace").decode()


def _kind(value: Any) -> str:
    names = {list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
