"""The judge that a configuration names."""

from __future__ import annotations

from stages.base import resolve
from stages.judge.judges.config import CustomJudge, JudgeConfig, SentimentJudge
from stages.judge.judges.llm.config import LlmJudge
from stages.judge.judges.means import Means, asker
from stages.judge.judges.rewards.config import ImplicitReward, RewardModelJudge
from stages.judge.judges.rules.config import RulesJudge
from stages.judge.protocol import Judge


def make(config: JudgeConfig, means: Means) -> Judge:
    """The judge that a spec names.

    Raises:
        ImportError: the user's own judge does not exist.
        StageError: it cannot work here, such as without the key of an endpoint.
    """
    if isinstance(config, SentimentJudge):
        from stages.judge.judges.sentiment import Sentiment

        return Sentiment()
    if isinstance(config, RulesJudge):
        from stages.judge.judges.rules.judge import Rules

        return Rules(config)
    if isinstance(config, LlmJudge):
        return _llm(config, means)
    if isinstance(config, RewardModelJudge):
        from stages.judge.judges.rewards.reward_model import RewardModel

        assert means.model is not None
        return RewardModel(config, means.model)
    if isinstance(config, ImplicitReward):
        from stages.judge.judges.rewards.implicit import Implicit

        assert means.model is not None
        assert means.reference is not None
        return Implicit(config, means.model, means.reference)
    assert isinstance(config, CustomJudge)
    judge: Judge = resolve(config.use)(**config.options)
    return judge


def _llm(config: LlmJudge, means: Means) -> Judge:
    from stages.judge.judges.llm.judge import Llm
    from stages.judge.judges.llm.words import Words

    words = Words(config)
    return Llm(config, words, asker(config, means, words.read))
