"""Judges, which score rollouts: the protocol, the built-in ones, and how a user's own is made."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from stages.base import resolve
from stages.core.records import Judgement, Rollout
from stages.judge.config import CustomJudge, JudgeConfig, RulesJudge, SentimentJudge


class Judge(Protocol):
    """Called with all rollouts of some prompts; gives one judgement for each, in any order."""

    def __call__(self, rollouts: Sequence[Rollout]) -> Sequence[Judgement]: ...


def make(config: JudgeConfig) -> Judge:
    """The judge that a spec names."""
    if isinstance(config, SentimentJudge):
        return Sentiment()
    if isinstance(config, RulesJudge):
        return Rules(config)
    assert isinstance(config, CustomJudge)
    judge: Judge = resolve(config.use)(**config.options)
    return judge


class Sentiment:
    """VADER's compound score of the text, from -1 to 1. An English lexicon with rules; needs no network.

    Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text" (2014).
    """

    def __init__(self) -> None:
        from vader import SentimentIntensityAnalyzer

        self._analyzer = SentimentIntensityAnalyzer()

    def __call__(self, rollouts: Sequence[Rollout]) -> list[Judgement]:
        return [Judgement(r.prompt_id, r.sample, self._analyzer.polarity_scores(r.text)["compound"]) for r in rollouts]


class Rules:
    """The share of the configured rules that a text follows; ``reason`` names the broken ones."""

    def __init__(self, config: RulesJudge) -> None:
        self._config = config

    def __call__(self, rollouts: Sequence[Rollout]) -> list[Judgement]:
        return [self._judge(rollout) for rollout in rollouts]

    def _judge(self, rollout: Rollout) -> Judgement:
        kept = self._kept(rollout.text)
        broken = [name for name, ok in kept if not ok]
        score = 1 - len(broken) / len(kept) if kept else 1.0
        return Judgement(rollout.prompt_id, rollout.sample, score, ", ".join(broken))

    def _kept(self, text: str) -> list[tuple[str, bool]]:
        rules, words, folded = self._config, len(text.split()), text.casefold()
        kept = []
        if rules.min_words is not None:
            kept.append(("min_words", words >= rules.min_words))
        if rules.max_words is not None:
            kept.append(("max_words", words <= rules.max_words))
        kept += [(f"must_contain {part!r}", part.casefold() in folded) for part in rules.must_contain]
        kept += [(f"must_not_contain {part!r}", part.casefold() not in folded) for part in rules.must_not_contain]
        if rules.pattern is not None:
            kept.append(("pattern", re.search(rules.pattern, text) is not None))
        return kept
