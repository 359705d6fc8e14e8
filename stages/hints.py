"""What to say about an unknown name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The known name that was probably meant, or None. ``cutoff`` is difflib's: 1 for equal names, 0 for any."""
    return next(iter(difflib.get_close_matches(name, list(known), 1, cutoff)), None)


def hint(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """A question with the name that was probably meant, or else all valid names."""
    known = list(known)
    meant = closest(name, known, cutoff)
    return f"did you mean {meant!r}?" if meant else f"valid: {', '.join(known)}"
