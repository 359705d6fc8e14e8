"""Conversations whose roles come in an order that a chat template may not support."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_FOLLOWS = {
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
"""Which roles every template accepts after which; nothing comes before the first."""


def unusual_order(messages: Sequence[Mapping[str, Any]]) -> str | None:
    """The roles in words if a template may not expect their order (two user turns in a row, a late system turn), or
    None."""
    roles = [str(message["role"]) for message in messages]
    usual = all(role in _FOLLOWS.get(before, ()) for before, role in zip(["", *roles], roles, strict=False))
    return None if usual else ", ".join(roles)


def left_out(messages: Sequence[Mapping[str, Any]], rendered: str) -> bool:
    """Whether a rendered conversation lacks a message's text, or has it before that of an earlier message."""
    at = 0
    for message in messages:
        text = str(message["content"]).strip()
        found = rendered.find(text, at)
        if found < 0:
            return True
        at = found + len(text)
    return False
