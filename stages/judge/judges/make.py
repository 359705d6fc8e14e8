"""The judge that a configuration names."""

from __future__ import annotations

from dataclasses import dataclass

from stages.base import resolve
from stages.generate import serving
from stages.io.artifact import Artifact
from stages.io.store import Store
from stages.judge.judges.config import CustomJudge, JudgeConfig, SentimentJudge
from stages.judge.judges.llm.config import LlmJudge
from stages.judge.judges.rewards.config import ImplicitReward, RewardModelJudge
from stages.judge.judges.rules.config import RulesJudge
from stages.judge.protocol import Judge


@dataclass(frozen=True)
class Means:
    """What a judge may use besides its configuration: the store, what its step (a fingerprint) has spent before, the
    model that its configuration names, and the GPUs for it."""

    store: Store
    step: str
    tokens: int = 0
    cost: float = 0.0
    model: Artifact | None = None
    gpus: float = 0
    reference: Artifact | None = None
    """The second model that its configuration names."""


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
    from stages.judge.judges.llm.judge import Answerer, Llm
    from stages.judge.judges.llm.kept import Kept
    from stages.judge.judges.llm.purse import Purse

    asked = {name: value for name, value in config.identity().items() if name not in ("rubric", "constitution")}
    answerer: Answerer
    if config.endpoint is not None:
        from stages.judge.judges.llm.endpoint import Endpoint

        answerer = Endpoint(config, config.endpoint)
    else:
        from stages.judge.judges.llm.served import Served

        assert means.model is not None
        answerer = Served(config, means.model, means.gpus)
        asked["model"] = means.model.fingerprint
    purse = Purse(config.budget, means.step, means.tokens, means.cost)
    return Llm(config, answerer, Kept(means.store, asked), purse)


def environment(config: JudgeConfig, gpu: bool) -> dict[str, str]:
    """Environment that the process of a judge has to start with."""
    if isinstance(config, LlmJudge) and config.model is not None:
        return serving.environment(config.sampling, gpu)
    return {}
