"""Text and lists of messages, in the forms people write them, as ``Messages``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from stages.core.errors import RowError, kind
from stages.core.records import Message, Messages

ROLES = ("system", "user", "assistant", "tool")
_ROLES = {
    **{role: role for role in ROLES},
    "human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "model": "assistant", "function_call": "assistant", "function": "tool", "observation": "tool", "ipython": "tool",
    "developer": "system",
}  # fmt: skip
"""Names of roles, as data sets spell them."""


def messages(value: Any, field: str, role: str) -> Messages:
    """Text as one message of ``role``, one message, or a list of messages; ``field`` is its name in errors.

    Raises:
        RowError: it is none of these, is empty, or holds something that is not text.
    """
    if isinstance(value, str):
        return (_message({"role": role, "content": value}, field),)
    if isinstance(value, Mapping):
        return (_message(value, field),)
    if not isinstance(value, list | tuple):
        raise RowError(field, f"expected text or a list of messages, found {kind(value)}")
    if not value:
        raise RowError(field, "no messages")
    return tuple(_message(item, f"{field}[{index}]") for index, item in enumerate(value))


def prompt(value: Any, field: str = "prompt") -> Messages:
    """Messages that an answer may follow."""
    found = messages(value, field, "user")
    if found[-1]["role"] == "assistant":
        raise RowError(field, "ends with the assistant's turn; the answer belongs in chosen and rejected")
    return found


def response(value: Any, field: str) -> Messages:
    """One assistant message."""
    found = messages(value, field, "assistant")
    if len(found) != 1 or found[0]["role"] != "assistant":
        raise RowError(field, f"expected one assistant message, found roles {[m['role'] for m in found]}")
    return found


def _message(value: Any, field: str) -> Message:
    if not isinstance(value, Mapping):
        raise RowError(field, f"expected a message {{role, content}}, found {kind(value)}")
    name = value.get("role", value.get("from"))
    role = _ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise RowError(f"{field}.role", f"expected one of {', '.join(ROLES)}, found {name!r:.40}")
    content = value.get("content", value.get("value"))
    calls = value.get("tool_calls") or (_call(content) if name == "function_call" else None)
    if calls is not None and role != "assistant":
        raise RowError(f"{field}.tool_calls", f"only an assistant calls tools, found role {role}")
    text = _text(content, f"{field}.content", optional=calls is not None)
    if name == "function_call" and calls is not None:
        text = ""
    message: Message = {"role": role, "content": text}
    if calls is not None:
        message["tool_calls"] = json_text(calls, f"{field}.tool_calls")
    return message


def _text(content: Any, field: str, optional: bool) -> str:
    if content is None and optional:
        return ""
    if isinstance(content, list):
        content = "".join(_part(part, f"{field}[{index}]") for index, part in enumerate(content))
    if not isinstance(content, str):
        raise RowError(field, f"expected text, found {kind(content)}")
    if not content.strip() and not optional:
        raise RowError(field, "empty")
    check_text(content, field)
    return content


def _part(part: Any, field: str) -> str:
    """A part of a message's content, as in multimodal data sets."""
    text = part.get("text", part.get("value")) if isinstance(part, Mapping) else part
    if isinstance(part, Mapping) and part.get("type", "text") != "text":
        raise RowError(field, f"only text can be used, found a part of type {part['type']!r:.40}")
    if not isinstance(text, str):
        raise RowError(field, f"expected a part {{type: text, text}}, found {kind(part)}")
    return text


def _call(content: Any) -> list[Mapping[str, Any]] | None:
    """A call written as JSON text, as in ShareGPT data; None if it is something else."""
    try:
        value = json.loads(content)
    except (TypeError, ValueError, RecursionError):
        return None
    calls = value if isinstance(value, list) else [value]
    if not all(isinstance(call, Mapping) and "name" in call for call in calls):
        return None
    return [{"type": "function", "function": call} for call in calls]


def json_text(value: Any, field: str) -> str:
    """A list of objects, or the JSON text of one, in one written form."""
    try:
        value = json.loads(value) if isinstance(value, str) else value
        text = json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RowError(field, f"not JSON: {error}"[:120]) from None
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise RowError(field, f"expected a list of objects, found {kind(value)}")
    check_text(text, field)
    return text


def check_text(text: str, field: str) -> None:
    """Refuse characters that no text encoding can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RowError(field, "half a surrogate pair, which no text encoding can hold") from None


def common_prefix(first: Sequence[Message], second: Sequence[Message]) -> int:
    """How many messages they have in common at the start."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count
