"""What a judge is asked and what it answers: all that someone who writes a judge has to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from stages.core.records import Judgement, Messages, Rollout

__all__ = ["Judge", "Judged", "Judgement", "NoVerdict", "Row", "Verdict"]


@dataclass(frozen=True)
class Row:
    """A prompt with everything that is known of it, and all answers that are to be judged.

    ``metadata`` is what else stood in the prompt's row, such as a reference answer. ``comparisons`` are the pairs of
    answers, as places in ``responses``, that a judge which compares is asked about; others score every response.
    """

    prompt_id: str
    messages: Messages
    responses: tuple[Rollout, ...]
    tools: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    comparisons: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Verdict:
    """A comparison of two responses of a row, by their places in it.

    ``preference`` is 1 if the first is better, 0 if the second is, 0.5 for a tie; a judge that votes may give shares.
    ``shown`` and ``swapped`` are what was said with the first response shown first and with the second shown first,
    both as preferences for ``first``; None where an order was not asked. The rest is as in ``Judgement``.
    """

    prompt_id: str
    first: int
    second: int
    preference: float
    reason: str = ""
    principle: str = ""
    shown: float | None = None
    swapped: float | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class NoVerdict:
    """A response (a place in the row) or a comparison (two places) that a judge could not judge, and why.

    ``passing`` says that the reason may be gone the next time, as that of a server which is down: then a run that goes
    on asks again.
    """

    prompt_id: str
    places: tuple[int, ...]
    reason: str
    passing: bool = False


Judged = Judgement | Verdict | NoVerdict


class Judge(Protocol):
    """Called with rows; gives for each response of each row a ``Judgement``, or for each of its comparisons a
    ``Verdict``, in any order. What it cannot judge it names in a ``NoVerdict``. A ``close`` method, if there is one, is
    called in the end."""

    def __call__(self, rows: Sequence[Row]) -> Sequence[Judged]: ...
