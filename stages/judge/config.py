"""How answers are judged, which become pairs, and when a policy is promoted: configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from stages.base import Config, Share
from stages.judge.judges.config import JudgeConfig


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
