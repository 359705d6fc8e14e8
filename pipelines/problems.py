"""What is wrong with a spec, in one shape for every check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    where: str
    """File, line and key path, as far as they are known."""
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


class SpecError(Exception):
    """The spec or the usage is wrong; nothing has been started."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


class StoreError(Exception):
    """The store cannot be used, or something in it is damaged."""
