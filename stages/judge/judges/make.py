"""The judge that a configuration names."""

from __future__ import annotations

from stages.base import resolve
from stages.judge.judges.config import CustomJudge, JudgeConfig, RulesJudge, SentimentJudge
from stages.judge.protocol import Judge


def make(config: JudgeConfig) -> Judge:
    """The judge that a spec names.

    Raises:
        ImportError: the user's own judge does not exist.
    """
    if isinstance(config, SentimentJudge):
        from stages.judge.judges.sentiment import Sentiment

        return Sentiment()
    if isinstance(config, RulesJudge):
        from stages.judge.judges.rules import Rules

        return Rules(config)
    assert isinstance(config, CustomJudge)
    judge: Judge = resolve(config.use)(**config.options)
    return judge
