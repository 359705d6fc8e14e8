"""What people's files look like, and how it becomes records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from stages.core.records import Message, Messages, PreferencePair, Prompt, content_id

ROLES = ("system", "user", "assistant", "tool")


class RowError(Exception):
    """A row cannot be used. ``field`` names the part that is wrong, ``reason`` what was expected."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field
        self.reason = reason


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
        raise RowError("", f"expected a JSON object, found {_kind(value)}")
    return value


def parse_prompt(row: Mapping[str, Any]) -> Prompt:
    """``{"prompt": text or messages}`` as a prompt; its id is its content's.

    Raises:
        RowError: the field is missing, empty, or ends with the assistant's turn.
    """
    messages = _prompt(row)
    return Prompt(content_id(list(messages)), messages)


def parse_pair(row: Mapping[str, Any], source: str = "") -> PreferencePair:
    """``{"prompt", "chosen", "rejected"}``, each text or messages, as a pair, or ``{"prompt", "completion", "label"}``
    as a pair of which one side is empty: the answer is chosen if the label is true, else rejected.

    ``preference_probability`` (0 to 1, default 1) says how sure the preference is.

    Raises:
        RowError: a field is missing, of the wrong type or empty, or both responses are the same.
    """
    prompt = _prompt(row)
    if "completion" in row:
        chosen, rejected = _labelled(row)
    else:
        chosen, rejected = _response(row, "chosen"), _response(row, "rejected")
        if chosen == rejected:
            raise RowError("rejected", "the same text as chosen")
    probability = row.get("preference_probability", 1.0)
    number = isinstance(probability, int | float) and not isinstance(probability, bool)
    if not number or not 0 <= probability <= 1:  # also false for NaN
        raise RowError("preference_probability", f"expected a number from 0 to 1, found {probability!r:.40}")
    return PreferencePair(prompt, chosen, rejected, probability=float(probability), source=source)


def _prompt(row: Mapping[str, Any]) -> Messages:
    messages = _messages(row, "prompt", "user")
    if messages[-1]["role"] == "assistant":
        raise RowError("prompt", "ends with the assistant's turn; the answer belongs in chosen and rejected")
    return messages


def _labelled(row: Mapping[str, Any]) -> tuple[Messages, Messages]:
    """A single answer on the side that its label says."""
    if both := [name for name in ("chosen", "rejected") if name in row]:
        raise RowError("completion", f"stands beside {' and '.join(both)}; give one answer with a label, or a pair")
    completion, label = _response(row, "completion"), row.get("label")
    if not isinstance(label, bool):
        found = "missing" if "label" not in row else f"found {label!r:.40}"
        raise RowError("label", f"expected true (a good answer) or false (a bad one), {found}")
    return (completion, ()) if label else ((), completion)


def _response(row: Mapping[str, Any], field: str) -> Messages:
    messages = _messages(row, field, "assistant")
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise RowError(field, f"expected one assistant message, found roles {[m['role'] for m in messages]}")
    return messages


def _messages(row: Mapping[str, Any], field: str, role: str) -> Messages:
    value = row.get(field)
    if value is None:
        names = ", ".join(row).encode("utf-8", "backslashreplace").decode()  # keys may hold half a surrogate pair
        raise RowError(field, f"missing; the row has {names or 'no fields'}"[:200])
    if isinstance(value, str):
        return (_message({"role": role, "content": value}, field),)
    if not isinstance(value, list):
        raise RowError(field, f"expected text or a list of messages, found {_kind(value)}")
    if not value:
        raise RowError(field, "no messages")
    return tuple(_message(item, f"{field}[{index}]") for index, item in enumerate(value))


def _message(value: Any, field: str) -> Message:
    if not isinstance(value, dict):
        raise RowError(field, f"expected a message {{role, content}}, found {_kind(value)}")
    role, content = value.get("role"), value.get("content")
    if role not in ROLES:
        raise RowError(f"{field}.role", f"expected one of {', '.join(ROLES)}, found {role!r:.40}")
    if not isinstance(content, str):
        raise RowError(f"{field}.content", f"expected text, found {_kind(content)}")
    if not content.strip():
        raise RowError(f"{field}.content", "empty")
    try:
        content.encode()
    except UnicodeEncodeError:
        raise RowError(f"{field}.content", "half a surrogate pair, which no text encoding can hold") from None
    return {"role": role, "content": content}


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "nothing"}
    return names.get(type(value), "a number")
