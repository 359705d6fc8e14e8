"""Types of values that cluster files share. What does not have the form is told so in words."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, NonNegativeInt, PositiveInt


def matching(pattern: str, expected: str) -> AfterValidator:
    """Text of a form; ``expected`` says which, for people."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"expected {expected}, got {text!r}")
        return text

    return AfterValidator(check)


StorePlace = Annotated[
    str,
    matching(
        r"/\S+|[a-z0-9]+://[^\s/:]+(/\S*)?", "an absolute path, or a bucket such as s3://bucket/prefix, without a key"
    ),
]
"""Where results are kept: a folder that all machines see, as an absolute path, or a bucket."""

Name = Annotated[
    str, matching(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", "lower-case letters, digits and hyphens, a letter first")
]
Text = Annotated[str, matching(r"\S+", "text without white space")]


def _rising(value: int | tuple[int, int]) -> int | tuple[int, int]:
    if isinstance(value, tuple) and value[0] > value[1]:
        raise ValueError(f"expected [fewest, most], got {list(value)}")
    return value


Count = Annotated[NonNegativeInt | tuple[NonNegativeInt, PositiveInt], AfterValidator(_rising)]
"""How many machines; ``[fewest, most]``: as many as the run's stages need."""


def both_ends(count: int | tuple[int, int]) -> tuple[int, int]:
    """The fewest and the most."""
    return count if isinstance(count, tuple) else (count, count)
