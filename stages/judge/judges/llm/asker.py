"""Asks a language model what it has not been asked before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Lock
from typing import Any, Protocol

from stages.judge.judges.llm.kept import Kept, Question, Reply, Unanswered
from stages.judge.judges.llm.purse import Purse


class Answerer(Protocol):
    """Where questions are answered."""

    def ask(
        self, questions: Sequence[Question], accept: Callable[[int, Reply], None], check: Callable[[], None]
    ) -> list[Unanswered | None]: ...

    def close(self) -> None: ...


class Asker:
    """Keeps each reply before anything is made of it, and counts what it cost. ``read`` raises a ValueError for a reply
    that makes no sense."""

    def __init__(self, answerer: Answerer, kept: Kept, purse: Purse, read: Callable[[Reply], object]) -> None:
        self._answerer, self._kept, self._purse, self._read = answerer, kept, purse, read

    @property
    def paid(self) -> tuple[int, float]:
        """Tokens and money that the step has spent, in this process and, on what this one has asked, before."""
        return self._purse.tokens, self._purse.cost

    def close(self) -> None:
        self._answerer.close()

    def replies(self, questions: Sequence[Question]) -> list[Reply | Unanswered]:
        """The replies to all questions; each is asked once, and only if it never was.

        Raises:
            StageError: the budget is spent, or the model will answer none.
        """
        unique = {each.text: each for each in questions}
        found = dict(zip(unique, self._kept.replies(list(unique.values())), strict=True))
        replies: dict[str, Reply | Unanswered] = {text: reply for text, reply in found.items() if reply is not None}
        for reply in found.values():
            if reply is not None:
                self._purse.pay(reply)
        if wanted := [each for text, each in unique.items() if text not in replies]:
            replies |= self._new(wanted)
        return [replies[each.text] for each in questions]

    def _new(self, wanted: Sequence[Question]) -> dict[str, Reply | Unanswered]:
        taken: dict[str, Reply | Unanswered] = {}
        spent: dict[int, Reply] = {}
        counting = Lock()

        def accept(number: int, reply: Reply) -> None:
            paid = replace(reply, paid_by=self._purse.step)
            with counting:
                self._purse.pay(paid)
                spent[number] = _together(paid, spent.get(number))  # what made no sense was paid, too
            self._read(reply)
            self._kept.keep(wanted[number], spent[number])
            taken[wanted[number].text] = spent[number]

        for question, why in zip(wanted, self._answerer.ask(wanted, accept, self._purse.check), strict=True):
            if why is not None:
                taken[question.text] = why
        return taken


def _together(reply: Reply, earlier: Reply | None) -> Reply:
    if earlier is None:
        return reply
    names = ("input_tokens", "output_tokens", "cost", "seconds")
    sums: dict[str, Any] = {name: getattr(reply, name) + getattr(earlier, name) for name in names}
    return replace(reply, **sums)
