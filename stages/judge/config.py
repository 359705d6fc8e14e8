"""How answers are judged, which become pairs, and when a policy is promoted: configuration."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, Tag, field_validator

from stages.base import Config, Plugin, Share


class SentimentJudge(Config):
    """Scores English text from -1 (negative) to 1 (positive)."""

    use: Literal["sentiment"]


class RulesJudge(Config):
    """Scores a response by the share of the given rules that it follows, from 0 to 1."""

    use: Literal["rules"]
    min_words: PositiveInt | None = None
    max_words: PositiveInt | None = None
    must_contain: tuple[str, ...] = ()
    must_not_contain: tuple[str, ...] = ()
    pattern: str | None = None
    """Regular expression that has to match somewhere."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return value


class CustomJudge(Plugin):
    """The user's own judge: a class or factory called with ``options`` that returns a ``Judge``."""


BUILTIN_JUDGES = ("sentiment", "rules")


def _judge_tag(value: Any) -> str | None:
    use = value.get("use") if isinstance(value, dict) else getattr(value, "use", None)
    if use in BUILTIN_JUDGES:
        return str(use)
    return "custom" if isinstance(use, str) and ":" in use else None


JudgeConfig = Annotated[
    Annotated[SentimentJudge, Tag("sentiment")]
    | Annotated[RulesJudge, Tag("rules")]
    | Annotated[CustomJudge, Tag("custom")],
    Discriminator(
        _judge_tag,
        custom_error_type="unknown_judge",
        custom_error_message='unknown judge; valid: use: sentiment, use: rules, or your own as use: "module:Class"',
    ),
]


class JudgeStageConfig(Config):
    judge: JudgeConfig
    max_bad_share: Share = 0.2
    """The stage fails when the judge has no score for a larger share of the answers."""


class PairConfig(Config):
    strategy: Literal["best_vs_worst"] = "best_vs_worst"
    min_margin: NonNegativeFloat = 0.0
    """Smallest score difference that makes a pair; equal scores never do."""


class EvaluateConfig(Config):
    resamples: PositiveInt = 10_000
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    seed: NonNegativeInt = 0


class PromoteConfig(Config):
    """The gate: every bound given has to be reached (win rates from 0 to 1)."""

    win_rate: Share | None = None
    win_rate_low: Share | None = None
    """Lower end of the win rate's confidence interval."""
