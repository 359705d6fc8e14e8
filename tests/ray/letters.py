"""A judge that counts a letter; a spec's folder gets a copy, as a user's own module."""

from __future__ import annotations

from collections.abc import Sequence

from stages.core.records import Judgement, Rollout


class Letters:
    """More a than z is better, or, turned around, worse."""

    def __init__(self, sign: int = 1) -> None:
        self._sign = sign

    def __call__(self, rollouts: Sequence[Rollout]) -> list[Judgement]:
        return [Judgement(r.prompt_id, r.sample, self._sign * self._more(r.text)) for r in rollouts]

    def _more(self, text: str) -> float:
        return float(text.count("a") - text.count("z"))
