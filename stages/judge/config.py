"""How answers are judged, which become pairs, and when a policy is promoted: configuration."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from stages.base import Config, Share
from stages.judge.judges.config import SingleJudgeConfig


class JudgeStageConfig(Config):
    judge: SingleJudgeConfig
    max_bad_share: Share = 0.2
    """The stage fails when the judge has no verdict for a larger share of what it was asked."""

    def identity(self) -> dict[str, Any]:
        """The judge's own identity leaves out what changes no verdict."""
        return {**super().identity(), "judge": self.judge.identity()}


class VoteConfig(Config):
    margin: NonNegativeFloat = 0.0
    """Scores of a judge that differ by no more than this are a tie."""


class SoftConfig(Config):
    """Preferences that are less than sure: the surer, the further the scores are apart, or the more judges agree."""

    temperature: PositiveFloat | None = None
    """A pair's probability is sigmoid(difference of its scores / temperature). 1 is right for the rewards of a
    Bradley-Terry model; otherwise take a difference that should count as 0.73 sure."""
    votes: bool = False
    """A pair's probability is what was said of these two answers: the share of an ensemble's votes, or of both orders
    of a judge that compares. Pairs without a majority are not made."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.temperature is None) == (not self.votes):
            raise ValueError("expected either a temperature or votes: true")
        return self


class LengthControlConfig(Config):
    """Against judges that like long answers, and rounds whose answers grow. Lengths are in tokens as sampled."""

    penalty: NonNegativeFloat = 0.0
    """Taken from an answer's score for each of its tokens, before anything else is done with the scores."""
    max_ratio: Annotated[float, Field(ge=1)] | None = None
    """A pair is not made if the chosen answer is longer than the rejected one times this."""

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if not self.penalty and self.max_ratio is None:
            raise ValueError(
                "controls nothing; give a penalty above 0, a max_ratio or both, or leave length_control out"
            )
        return self


class RejectionConfig(Config):
    """Statistical rejection sampling (RSO, arXiv:2309.06657); the defaults are the paper's."""

    beta: PositiveFloat = 0.5
    """An answer is accepted with probability exp((score - best score) / beta), so beta is in the unit of the scores.
    A small one trusts the judge, a large one takes the answers as they come."""
    samples: Annotated[int, Field(ge=2)] = 8
    """Answers that are accepted per prompt; they make half as many pairs. The paper accepts 8 of 64."""


_USED_BY = {
    "max_pairs": ("all",),
    "rejection": ("rejection_sampling",),
    "seed": ("best_vs_random", "rejection_sampling"),
}
"""Settings of pairing that only some strategies look at."""


class PairConfig(Config):
    strategy: Literal["best_vs_worst", "best_vs_random", "all", "rejection_sampling"] = "best_vs_worst"
    """Which answers to a prompt make pairs (``stages.judge.pairing``)."""
    min_margin: NonNegativeFloat = 0.0
    """Smallest score difference that makes a pair; equal scores never do."""
    max_pairs: PositiveInt | None = None
    """Most pairs of a prompt with strategy ``all``; those that differ most in score are taken."""
    rejection: RejectionConfig = RejectionConfig()
    """Settings of strategy ``rejection_sampling``."""
    soft: SoftConfig | None = None
    """Probabilities from the scores instead of 1."""
    length_control: LengthControlConfig | None = None
    seed: NonNegativeInt = 0
    """Of the random choices, which depend on it and on the prompt's id alone."""

    @field_validator(*_USED_BY)
    @classmethod
    def _is_used(cls, value: Any, info: ValidationInfo) -> Any:
        """A setting that nothing looks at is a mistake, and would make the same pairs under another fingerprint."""
        name, strategy = str(info.field_name), info.data.get("strategy")
        if strategy is None or strategy in _USED_BY[name] or value == cls.model_fields[name].default:
            return value
        users = " or ".join(_USED_BY[name])
        raise ValueError(f"means nothing to pair.strategy {strategy}; leave pair.{name} out, or take strategy {users}")


class EvaluateConfig(Config):
    against: tuple[str, ...] = ("base",)
    """The baselines' names; the first is the one that a summary speaks of."""
    task: str | None = None
    """Field of a prompt's row that names its task."""
    resamples: PositiveInt = 10_000
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    seed: NonNegativeInt = 0


class PromoteConfig(Config):
    """The gate: every bound given has to be kept. Win rates, from 0 to 1, are those against the first baseline."""

    win_rate: Share | None = None
    win_rate_low: Share | None = None
    """Lower end of the win rate's confidence interval."""
    length_controlled: Share | None = None
    """Win rate as it would be if both sides' answers were equally long."""
    length_controlled_low: Share | None = None
    max_kl: PositiveFloat | None = None
    """KL of the policy from the reference of its training, in nats per answer, estimated on its answers."""
    max_length_ratio: PositiveFloat | None = None
    """How long answers may be beside the baseline's: 1.2 is a fifth longer."""
    max_regression: dict[str, NonNegativeFloat] = Field(default_factory=dict)
    """By task, how much its mean score may have fallen, or for a judge that compares, how far its win rate may be below
    a half."""
    max_check_regression: NonNegativeFloat | None = None
    """How much the mean score of ``evaluate.checks`` may have fallen."""
    min_agreement: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Agreement of an ensemble's judges on the answers that are compared (Krippendorff's alpha)."""
