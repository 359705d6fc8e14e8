"""The judges that a spec can name: configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, NonNegativeFloat, Tag, field_validator

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


SINGLE_JUDGES = ("sentiment", "rules", "llm", "reward_model", "implicit_reward")
BUILTIN_JUDGES = (*SINGLE_JUDGES, "ensemble")


def _tag(value: Any) -> str | None:
    use = value.get("use") if isinstance(value, dict) else getattr(value, "use", None)
    if use in BUILTIN_JUDGES:
        return str(use)
    return "custom" if isinstance(use, str) and ":" in use else None


def _single_tag(value: Any) -> str | None:
    return None if (tag := _tag(value)) == "ensemble" else tag


def _discriminator(tag: Callable[[Any], str | None], names: Sequence[str]) -> Discriminator:
    known = ", ".join(f"use: {name}" for name in names)
    message = f'unknown judge; valid: {known}, or your own as use: "module:Class"'
    return Discriminator(tag, custom_error_type="unknown_judge", custom_error_message=message)


SingleJudge = (
    Annotated[SentimentJudge, Tag("sentiment")]
    | Annotated[RulesJudge, Tag("rules")]
    | Annotated[LlmJudge, Tag("llm")]
    | Annotated[RewardModelJudge, Tag("reward_model")]
    | Annotated[ImplicitReward, Tag("implicit_reward")]
    | Annotated[CustomJudge, Tag("custom")]
)


SingleJudgeConfig = Annotated[SingleJudge, _discriminator(_single_tag, SINGLE_JUDGES)]


class EnsembleJudge(Config):
    """Several judges vote on any two answers; a preference is the share of their votes."""

    use: Literal["ensemble"]
    judges: tuple[SingleJudgeConfig, ...]
    margin: NonNegativeFloat = 0.0
    """Scores of a judge that differ by no more than this are a tie."""

    @field_validator("judges")
    @classmethod
    def _several(cls, value: tuple[SingleJudge, ...]) -> tuple[SingleJudge, ...]:
        if len(value) < 2:
            raise ValueError(f"expected at least 2 judges, got {len(value)}; name one without an ensemble")
        return value

    @property
    def compares(self) -> bool:
        return True


JudgeConfig = Annotated[SingleJudge | Annotated[EnsembleJudge, Tag("ensemble")], _discriminator(_tag, BUILTIN_JUDGES)]


def singles(judge: JudgeConfig) -> dict[tuple[str | int, ...], SingleJudge]:
    """A judge, or the members of an ensemble, each with its key."""
    if not isinstance(judge, EnsembleJudge):
        return {(): judge}
    return {("judges", number): member for number, member in enumerate(judge.judges)}


def models_of(judge: Config) -> dict[str, ModelSource]:
    """The models that a judge runs itself, by the name of its setting: inputs of its step."""
    found = {name: getattr(judge, name, None) for name in ("model", "reference")}
    return {name: source for name, source in found.items() if isinstance(source, ModelSource)}
