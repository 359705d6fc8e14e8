"""What pydantic says about a file, in words for the people who wrote it."""

from __future__ import annotations

import reprlib
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from pipelines.spec.models import explain_type
from pipelines.spec.problems import Fault, KeyPath
from stages.base import Config
from stages.core.losses.config import UNKNOWN_NAME
from stages.hints import hint

_KEY = "[key]"
"""Behind what pydantic says about a key, not its value."""


def invalid(error: ValidationError, raw: Mapping[str, Any], root: type[Config], section: str = "") -> Iterator[Fault]:
    """What pydantic says about a document of the model ``root``, or a ``section`` of it, with the keys that people have
    written and plainer words."""
    for item in error.errors(include_url=False):
        location = item["loc"][:-1] if item["loc"] and item["loc"][-1] == _KEY else item["loc"]
        kind = item["type"]
        path, models = _real_path((section, *location) if section else location, raw, kind == "missing")
        if kind == "extra_forbidden":
            message = unknown_key(str(path[-1]), _fields_at(root, path[:-1], models))
        elif kind == "missing":
            message = "required, but missing"
        elif kind == "unknown_judge":
            message = item["msg"]
            path = (*path, "use")
        elif kind == UNKNOWN_NAME:
            message = item["msg"]
            path = (*path, "use") if isinstance(item["input"], Mapping) else path
        else:
            plain = explain_type(kind, item.get("ctx", {}))
            message = plain or item["msg"].removeprefix("Value error, ")
            if kind != "value_error":
                message = f"{message[0].lower()}{message[1:]}, got {reprlib.repr(item['input'])}"
        yield Fault(path, message)


def _real_path(location: Sequence[str | int], raw: Any, missing: bool) -> tuple[KeyPath, tuple[str, ...]]:
    """Pydantic's location without its union tags, and those tags. What stands last and is in no mapping of the document
    is a key that is ``missing``, or the tag of a model that as a whole is wrong."""
    path: list[str | int] = []
    tags: list[str] = []
    value = raw
    for index, part in enumerate(location):
        last = index == len(location) - 1
        known = (isinstance(value, Mapping) and part in value) or (isinstance(value, list) and isinstance(part, int))
        if known:
            path.append(part)
            value = value[part]
        elif last and isinstance(part, str) and (missing or not isinstance(value, Mapping | str | int | float | None)):
            path.append(part)
        else:
            tags.append(str(part))
    return tuple(path), tuple(tags)


def _fields_at(root: type[Config], path: KeyPath, tags: tuple[str, ...]) -> Mapping[str, FieldInfo]:
    """The fields of the model at ``path``."""
    models: list[type[Config]] = [root]
    for part in (part for part in path if isinstance(part, str)):  # an index leads to what the list holds
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        models = [model for field in fields for model in _models(field.annotation, tags)]
    return {field.alias or name: field for model in models for name, field in model.model_fields.items()}


def _models(annotation: Any, tags: tuple[str, ...]) -> Iterator[type[Config]]:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
    arguments = typing.get_args(annotation)
    named = [a for a in arguments if any(getattr(m, "tag", None) in tags for m in typing.get_args(a)[1:])]
    for argument in named or arguments:
        yield from _models(argument, tags)


def unknown_key(key: str, fields: Mapping[str, Any]) -> str:
    """What to say about a key that is none of the fields."""
    return f"unknown key; {hint(key, fields)}"
