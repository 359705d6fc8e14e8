"""Judges that take the reward of a model for the score: configuration."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import PositiveFloat, PositiveInt, model_validator

from stages.base import Config
from stages.core.forward.config import Precision
from stages.policy.config import ModelSource


class RewardModelJudge(Config):
    """A sequence-classification model with one output scores each answer."""

    use: Literal["reward_model"]
    model: ModelSource | Literal["reward"]
    """A folder in Hugging Face format, or a hub id with a revision; or ``reward``, that which the spec trains."""
    max_length: PositiveInt = 4096
    """Most tokens of prompt and answer; what is longer has no score, and goes to quarantine."""
    batch_tokens: PositiveInt = 8192
    """Tokens of one forward pass, padding included; a pass has at least one answer."""
    precision: Precision = "bf16"
    """Precision of the products; the head that makes the score is always float32."""

    @property
    def compares(self) -> bool:
        return False

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.model == "reward":
            return self
        if self.model.adapter is not None:
            raise ValueError("an adapter would be merged without the model's head; merge it yourself, and leave it out")
        if self.model.model.startswith("pkg://"):
            raise ValueError("a GGUF file has no head for a score; give a folder or a hub id")
        return self

    def identity(self) -> dict[str, Any]:
        """What can change a score. The model is an input of the step."""
        return self.model_dump(mode="json", exclude_defaults=True, exclude={"model", "batch_tokens"})


class ImplicitReward(Config):
    """The reward that a policy was trained to have: how much likelier it finds an answer than its reference does."""

    use: Literal["implicit_reward"]
    model: ModelSource
    """The policy."""
    reference: ModelSource
    """What it was trained against, with the same tokenizer."""
    beta: PositiveFloat = 0.1
    """That of its training."""
    precision: Precision = "bf16"

    @property
    def compares(self) -> bool:
        return False

    def identity(self) -> dict[str, Any]:
        """Without the models, which are inputs of the step."""
        return self.model_dump(mode="json", exclude_defaults=True, exclude={"model", "reference"})
