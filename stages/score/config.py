"""How policies are scored on pairs: configuration."""

from __future__ import annotations

from stages.base import Config
from stages.core.forward.config import LayoutChoice, Precision
from stages.core.losses.config import ObjectiveConfig
from stages.policy.config import Quantization


class ReferenceConfig(Config):
    precision: Precision = "bf16"
    layout: LayoutChoice = "auto"
    mismatched: bool = False
    """Also score every prompt with another prompt's answer, which ``kto`` estimates the divergence from."""
    quantization: Quantization | None = None


class HeldoutConfig(Config):
    """How a policy's ranking of held-out pairs is measured."""

    objective: ObjectiveConfig
    """The loss of the training, without what is not about the pairs themselves."""


def measured(objective: ObjectiveConfig) -> ObjectiveConfig:
    """What of a training's objective is measured on held-out pairs: neither constraints nor weights by confidence."""
    kept = ("loss", "beta", "length_normalise", "divergence", "sft_weight")
    return ObjectiveConfig(**{name: getattr(objective, name) for name in kept})
