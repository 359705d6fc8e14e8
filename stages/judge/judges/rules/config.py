"""The judge that checks rules: configuration."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, NonNegativeFloat, PositiveInt, field_validator

from stages.base import Config, plain
from stages.policy.config import ModelSource


class FromField(Config):
    """Every prompt's row says it, in this field."""

    field: Annotated[str, Field(min_length=1)]


class AnswerRule(Config):
    """The final answer is that of a reference in the prompt's row."""

    field: Annotated[str, Field(min_length=1)] | None = None
    """Where the reference is; by default in ``answer``, ``reference`` or ``solution``, the first that there is."""
    tolerance: NonNegativeFloat = 0.0
    """How far a number may be from the reference, as a share of it."""


def _switched(value: Any) -> Any:
    """``true`` is a rule with all its defaults, ``false`` none."""
    return {} if value is True else None if value is False else value


class RulesJudge(Config):
    """Scores a response by the share of the given rules that it follows, from 0 to 1."""

    model_config = ConfigDict(validate_by_name=True, serialize_by_alias=True)

    use: Literal["rules"]
    min_words: PositiveInt | None = None
    max_words: PositiveInt | None = None
    must_contain: tuple[str, ...] = ()
    must_not_contain: tuple[str, ...] = ()
    pattern: str | None = None
    """Regular expression that has to match somewhere."""
    json_: Annotated[FromField | dict[str, Any] | bool, Field(alias="json", union_mode="left_to_right")] = False
    """The answer is JSON, alone or in a code fence. With a JSON schema, or ``field: NAME`` of the prompt's row that
    holds one, it also follows that."""
    language: Annotated[str, Field(min_length=2)] | FromField | None = None
    """The answer is in this language, an ISO 639-1 code such as ``de``, or in that of the row's ``field``."""
    answer: Annotated[AnswerRule | None, BeforeValidator(_switched)] = None
    instructions: bool = False
    """Every one of the row's ``instruction_id_list``, with its ``kwargs``, is a rule (IFEval, arXiv:2311.07911)."""

    @property
    def compares(self) -> bool:
        return False

    @property
    def model(self) -> ModelSource | None:
        return None

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return value

    @field_validator("json_")
    @classmethod
    def _is_a_schema(cls, value: FromField | dict[str, Any] | bool) -> FromField | dict[str, Any] | bool:
        if isinstance(value, dict):
            from jsonschema import SchemaError
            from jsonschema.validators import validator_for

            try:
                validator_for(plain(value)).check_schema(value)
            except SchemaError as error:
                raise ValueError(f"not a JSON schema: {error.message}") from None
        return value
