"""The judges that a spec can name: configuration."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag

from stages.base import Config, Plugin
from stages.judge.judges.llm.config import LlmJudge
from stages.judge.judges.rewards.config import ImplicitReward, RewardModelJudge
from stages.judge.judges.rules.config import RulesJudge
from stages.policy.config import ModelSource


class _Scores(Config):
    """A judge that scores each answer, without a model of its own."""

    @property
    def compares(self) -> bool:
        return False

    @property
    def model(self) -> ModelSource | None:
        return None


class SentimentJudge(_Scores):
    """Scores English text from -1 (negative) to 1 (positive)."""

    use: Literal["sentiment"]


class CustomJudge(Plugin):
    """The user's own judge: a class or factory called with ``options`` that returns a ``Judge``
    (``stages.judge.protocol``)."""

    compares: bool = False
    """Whether it compares answers by two, instead of scoring each."""

    @property
    def model(self) -> ModelSource | None:
        return None


BUILTIN_JUDGES = ("sentiment", "rules", "llm", "reward_model", "implicit_reward")


def _judge_tag(value: Any) -> str | None:
    use = value.get("use") if isinstance(value, dict) else getattr(value, "use", None)
    if use in BUILTIN_JUDGES:
        return str(use)
    return "custom" if isinstance(use, str) and ":" in use else None


JudgeConfig = Annotated[
    Annotated[SentimentJudge, Tag("sentiment")]
    | Annotated[RulesJudge, Tag("rules")]
    | Annotated[LlmJudge, Tag("llm")]
    | Annotated[RewardModelJudge, Tag("reward_model")]
    | Annotated[ImplicitReward, Tag("implicit_reward")]
    | Annotated[CustomJudge, Tag("custom")],
    Discriminator(
        _judge_tag,
        custom_error_type="unknown_judge",
        custom_error_message="unknown judge; valid: "
        + ", ".join(f"use: {name}" for name in BUILTIN_JUDGES)
        + ', or your own as use: "module:Class"',
    ),
]


def models_of(judge: JudgeConfig) -> dict[str, ModelSource]:
    """The models that a judge runs itself, by the name of its setting: inputs of its step."""
    found = {name: getattr(judge, name, None) for name in ("model", "reference")}
    return {name: source for name, source in found.items() if isinstance(source, ModelSource)}
