"""A judge that counts a letter; a spec's folder gets a copy, as a user's own module."""

from __future__ import annotations

from collections.abc import Sequence

from stages.judge.protocol import Judgement, Row


class Letters:
    """More a than z is better, or, turned around, worse."""

    def __init__(self, sign: int = 1) -> None:
        self._sign = sign

    def __call__(self, rows: Sequence[Row]) -> list[Judgement]:
        return [
            Judgement(row.prompt_id, each.sample, self._sign * self._more(each.text))
            for row in rows
            for each in row.responses
        ]

    def _more(self, text: str) -> float:
        return float(text.count("a") - text.count("z"))
