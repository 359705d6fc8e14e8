"""Rules of an answer's shape: JSON and its schema, the language."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from stages.judge.judges.rules.rows import Unjudged

_FENCED = re.compile(r"\s*```[\w+-]*[ \t]*\n(.*?)\n?[ \t]*```\s*", re.DOTALL)


def unfenced(text: str) -> str:
    """What stands in a code fence, if that is all there is; the text itself otherwise."""
    fenced = _FENCED.fullmatch(text)
    return fenced[1] if fenced else text


def parsed(text: str) -> Any:
    """The JSON value of an answer, alone or in a code fence.

    Raises:
        ValueError: it is none. NaN and infinities, which Python reads, are no JSON.
    """

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    try:
        return json.loads(unfenced(text), parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def json_fault(text: str, schema: Any = None) -> str:
    """What is wrong with an answer that should be JSON and follow a schema; nothing if it is and does.

    Raises:
        Unjudged: the schema is none, or refers to one that it does not hold: nothing is fetched.
    """
    from jsonschema import SchemaError
    from jsonschema.validators import validator_for
    from jsonschema_specifications import REGISTRY
    from referencing.exceptions import Unresolvable

    try:
        value = parsed(text)
    except ValueError as error:
        return f"no JSON: {error}"
    if schema is None:
        return ""
    try:
        kind = validator_for(schema)
        kind.check_schema(schema)
        fault = next(iter(kind(schema, registry=REGISTRY).iter_errors(value)), None)
    except (SchemaError, Unresolvable, RecursionError) as error:
        raise Unjudged(f"json: not a JSON schema that can be checked: {str(error).splitlines()[0]:.200}") from None
    return f"{fault.json_path}: {fault.message:.200}" if fault else ""


def schema_of(value: Any) -> Any:
    """A schema from a field of a row, where it may stand as text.

    Raises:
        Unjudged: it is neither a schema nor the text of one.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise Unjudged("json: the row's schema is no JSON") from None
    if not isinstance(value, Mapping | bool):
        raise Unjudged(f"json: the row's schema is {value!r:.40}, no JSON schema")
    return value


def is_language(text: str, code: Any, rule: str = "language") -> bool:
    """Whether the likeliest language of a text is that of the code; of a short text that may be a guess.

    Raises:
        Unjudged: no such language can be told.
    """
    from stages.data.quality import languages

    if code not in languages.known():
        raise Unjudged(f"{rule}: no language {code!r:.40} can be told; it is an ISO 639-1 code such as 'en'")
    return bool(text.strip()) and languages.language(text, confidence=0.0) == code
