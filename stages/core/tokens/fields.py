"""A message's other fields and tool definitions, from their JSON text to what chat templates take."""

from __future__ import annotations

import json
from typing import Any

from stages.core.errors import RowError


def objects(text: str, field: str) -> list[dict[str, Any]]:
    """A JSON text that must be a list of objects."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowError(field, f"not JSON: {error}"[:120]) from None
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise RowError(field, "expected the JSON text of a list of objects")
    return value


def other_fields(text: str) -> dict[str, Any]:
    """A message's other fields as templates take them: arguments of calls given as JSON text, as OpenAI does, become
    objects."""
    extra: dict[str, Any] = json.loads(text)
    for call in extra.get("tool_calls", ()):
        function = call.get("function", call)
        if isinstance(function, dict) and isinstance(arguments := function.get("arguments"), str):
            try:
                function["arguments"] = json.loads(arguments)
            except (ValueError, RecursionError) as error:
                raise RowError("tool_calls", f"the arguments of a call are not JSON: {error}"[:120]) from None
    return extra
