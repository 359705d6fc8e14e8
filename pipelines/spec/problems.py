"""What is wrong with a spec, in the same form for every check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

KeyPath = tuple[str | int, ...]


def printable(text: str) -> str:
    """A text that cannot move a terminal's cursor: what comes from data may hold anything."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


@dataclass(frozen=True)
class Problem:
    where: str
    """File, line and key path, as far as they are known."""
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


@dataclass(frozen=True)
class Fault:
    """What is wrong at one key path of the spec."""

    path: KeyPath
    message: str


@dataclass
class Checked:
    """Faults stop a run, notes do not."""

    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class SpecError(Exception):
    """The spec or the usage is wrong; nothing has been started."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)
