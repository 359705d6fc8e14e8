"""Types of values that cluster files share. What does not have the form is told so in words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt

from stages.base import Config


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


class Several(Config):
    """Machines of one kind, in a number."""

    workers: Annotated[NonNegativeInt | tuple[NonNegativeInt, PositiveInt], AfterValidator(_rising)] = 1
    """How many; ``[fewest, most]``: as many as the run's stages need."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels of Ray, which ``label_selector`` in a spec's resources chooses by."""

    @property
    def range(self) -> tuple[int, int]:
        """The fewest and the most."""
        return self.workers if isinstance(self.workers, tuple) else (self.workers, self.workers)


def grow(groups: Iterable[Several]) -> bool:
    """Whether machines of any group are added on demand."""
    return any(group.range[0] < group.range[1] for group in groups)
