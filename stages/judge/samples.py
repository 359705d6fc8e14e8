"""Samples side by side, for people to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stages.judge.sides import Side


def side_by_side(sides: Mapping[str, Side], rates: Mapping[str, Mapping[str, float]]) -> Iterator[dict[str, Any]]:
    """For each prompt the answers of all sides with their scores, and the policy's win rate against each baseline.
    Prompts that the policy does worst on come first: they are what to look at."""
    first = next(iter(rates.values()))
    policy = sides["policy"]
    for prompt in sorted(policy.answers, key=lambda each: (first.get(each, 2.0), each)):
        yield {
            "prompt_id": prompt,
            "prompt": [dict(message) for message in policy.answers[prompt][0].messages],
            "win_rate": {name: found[prompt] for name, found in rates.items() if prompt in found},
            "answers": {name: _answers(each, prompt) for name, each in sides.items() if prompt in each.answers},
        }


def _answers(side: Side, prompt: str) -> list[dict[str, Any]]:
    scores = side.scores.get(prompt, {}) if side.scores is not None else {}
    return [
        {"text": each.text, "tokens": each.tokens, **({"score": scores[each.sample]} if each.sample in scores else {})}
        for each in side.answers[prompt]
    ]
