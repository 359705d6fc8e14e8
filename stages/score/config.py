"""How policies are scored on pairs: configuration."""

from __future__ import annotations

from stages.base import Config
from stages.core.forward.config import LayoutChoice, Precision
from stages.core.losses.config import ObjectiveConfig
from stages.policy.config import Quantization


def tokens_of_pass(gpu: bool) -> int:
    """Tokens of a forward pass: a card is kept busy by more alone, and no backward pass needs memory."""
    return 16_384 if gpu else 2048


class ReferenceConfig(Config):
    precision: Precision = "bf16"
    layout: LayoutChoice = "auto"
    mismatched: bool = False
    """Also score every prompt with another prompt's answer, from which ``kto`` estimates the divergence."""
    quantization: Quantization | None = None


class HeldoutConfig(Config):
    """How a policy's ranking of held-out pairs is measured."""

    objective: ObjectiveConfig
    """The training's loss, without what does not concern the pairs themselves."""


def measured(objective: ObjectiveConfig) -> ObjectiveConfig:
    """The part of a training's objective that is measured on held-out pairs: no constraints, no confidence weights."""
    kept = ("loss", "beta", "length_normalise", "divergence", "sft_weight")
    return ObjectiveConfig(**{name: getattr(objective, name) for name in kept})
