"""Types of values that cluster files share. What does not have the form is told so in words."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator


def matching(pattern: str, expected: str) -> AfterValidator:
    """Text of a form; ``expected`` says which, for people."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"expected {expected}, got {text!r}")
        return text

    return AfterValidator(check)


StorePlace = Annotated[
    str, matching(r"(/|[a-z0-9]+://)[^\s]+", "an absolute path, or a bucket such as s3://bucket/prefix")
]
"""Where results are kept: a folder that all machines see, as an absolute path, or a bucket."""

Name = Annotated[
    str, matching(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", "lower-case letters, digits and hyphens, a letter first")
]
Text = Annotated[str, matching(r"\S+", "text without white space")]
