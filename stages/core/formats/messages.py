"""Text and lists of messages, in the forms people write them, as ``Messages``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from stages.core.errors import RowError, kind
from stages.core.records import Message, Messages

ROLES = ("system", "user", "assistant", "tool")
NAMED_ROLES = {
    **{role: role for role in ROLES},
    "human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "model": "assistant", "function_call": "assistant", "function": "tool", "observation": "tool", "ipython": "tool",
    "developer": "system",
}  # fmt: skip
"""Names of roles, as data sets spell them."""
_PLAIN = {"role", "from", "content", "value"}
"""What a message's role and text are called."""
_MAY_BE_EMPTY = ("system", "tool")
"""Turns that mean something when they are empty: no system prompt at all, a tool that returned nothing."""
_SAYS = ("tool_calls", "reasoning_content", "reasoning", "thinking")
"""Fields of which one is enough for a turn without text."""
_READ = (*_SAYS, "name", "tool_call_id")
"""Fields that chat templates are known to read."""


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
    role = NAMED_ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise RowError(f"{field}.role", f"expected one of {', '.join(ROLES)}, found {name!r:.40}")
    content = value.get("content", value.get("value"))
    extra = {} if value.keys() <= _PLAIN else _extra(value, field)
    if name == "function_call" and (calls := _call(content)) is not None:
        content, extra = "", {"tool_calls": calls, **extra}
    if extra and "tool_calls" in extra and role != "assistant":
        raise RowError(f"{field}.tool_calls", f"only an assistant calls tools, found role {role}")
    optional = role in _MAY_BE_EMPTY or (bool(extra) and any(extra.get(name) for name in _SAYS))
    message: Message = {"role": role, "content": _text(content, f"{field}.content", optional)}
    if extra:
        message["extra"] = json.dumps(extra, ensure_ascii=False)
        check_text(message["extra"], field)
    return message


def _extra(value: Mapping[str, Any], field: str) -> dict[str, Any]:
    """What a message has besides role and content, in its order. A null or an empty list of calls says nothing. What is
    not JSON (a date, NaN) no template can have been written for."""
    found: dict[str, Any] = {}
    for name, item in value.items():
        if name in _PLAIN or item is None:
            continue
        if name == "tool_calls":
            if item:
                found[name] = json_objects(item, f"{field}.tool_calls")
            continue
        try:
            json.dumps(item, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            continue
        found[str(name)] = item
    return found


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


def json_objects(value: Any, field: str) -> list[Mapping[str, Any]]:
    """A list of objects, or the JSON text of one. Keys keep their order: a template writes them as they come."""
    try:
        value = json.loads(value) if isinstance(value, str) else value
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RowError(field, f"not JSON: {error}"[:120]) from None
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise RowError(field, f"expected a list of objects, found {kind(value)}")
    return value


def json_text(value: Any, field: str) -> str:
    """The JSON text of :func:`json_objects`."""
    text = json.dumps(json_objects(value, field), ensure_ascii=False)
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
        if not same(one, other):
            break
        count += 1
    return count


def same(one: Message, other: Message) -> bool:
    """Whether two messages say the same: they may differ in fields that no template is known to read, such as an id."""
    if one == other:
        return True
    said = one["content"].strip() == other["content"].strip()
    return one["role"] == other["role"] and said and _known(one) == _known(other)


def _known(message: Message) -> dict[str, Any]:
    extra: dict[str, Any] = json.loads(message.get("extra", "{}"))
    return {name: value for name, value in extra.items() if name in _READ}
