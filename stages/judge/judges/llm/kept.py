"""What a language model said, kept in the store by the question's content: it is never asked the same twice."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

from stages.io.store import Store


@dataclass(frozen=True)
class Question:
    """Words for a language model, and the JSON schema of what it is to answer."""

    text: str
    schema: Mapping[str, Any]


@dataclass(frozen=True)
class Reply:
    """What it said, and what that took. ``paid_by`` is the fingerprint of the step that asked."""

    text: str
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    seconds: float = 0.0
    paid_by: str = ""
    cut: bool = False
    """Whether it came to the end of the tokens that it was allowed."""


class CutOff(ValueError):
    """A reply has no end: asked again, it would have none either."""


@dataclass(frozen=True)
class Unanswered:
    """Why there is no reply; ``passing`` as in ``NoVerdict``."""

    reason: str
    passing: bool = False


class Kept:
    """Replies by what was asked of whom. Each is an object of its own, in place before anything is made of it."""

    def __init__(self, store: Store, asked: Mapping[str, Any]) -> None:
        self._store = store
        self._asked = asked
        """Who is asked, and how."""

    def replies(self, questions: Sequence[Question]) -> list[Reply | None]:
        """Those that are there."""
        found = self._store.read_all([self._place(each) for each in questions])
        return [Reply(**json.loads(data)) if data else None for data in found]

    def keep(self, question: Question, reply: Reply) -> None:
        self._store.write(self._place(question), json.dumps(asdict(reply), ensure_ascii=False).encode())

    def _place(self, question: Question) -> str:
        what = json.dumps({"asked": self._asked, **asdict(question)}, sort_keys=True)
        name = sha256(what.encode()).hexdigest()[:40]
        return f"verdicts/{name[:2]}/{name}.json"
