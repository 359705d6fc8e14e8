"""What lies where in a packed row, and what a family of models changes about its attention.

A packed row holds segments one after another. A segment is a tree: a ``prompt`` and two branches, ``chosen`` and
``rejected``; a branch sees the prompt and itself, never the other branch. Both branches have the positions that come
after the prompt's. A plain sequence is a segment whose second branch is empty.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """Where a tree lies in the packed row: tokens of its prompt and of its two branches from ``start`` on."""

    start: int
    prompt: int
    chosen: int
    rejected: int = 0

    @property
    def length(self) -> int:
        return self.prompt + self.chosen + self.rejected

    @property
    def longest(self) -> int:
        """Tokens of the longer of its two sequences."""
        return self.prompt + max(self.chosen, self.rejected)


Segments = tuple[Segment, ...]


@dataclass(frozen=True, eq=False)
class Variant:
    """How attention differs from softmax(q k' / sqrt(dim)) v over everything before a token.

    ``scale``: in the place of 1 / sqrt(dim). ``window``: how many positions a token sees, its own among them. ``cap``:
    scores become cap tanh(score / cap) (Gemma 2, arXiv:2408.00118). ``sinks``: [heads], a score each that takes part in
    the softmax and has no value (gpt-oss, arXiv:2508.10925).
    """

    scale: float | None = None
    window: int | None = None
    cap: float | None = None
    sinks: Tensor | None = None


PLAIN = Variant()
