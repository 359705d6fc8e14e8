"""Where a base model comes from, and which adapters Rondo trains and loads: configuration."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any, Literal

from stages.base import Config
from stages.hints import hint

Quantization = Literal["4bit", "8bit"]


class MaterialiseConfig(Config):
    """A model from the hub; for local sources the model is the step's input and this is empty."""

    hub: str | None = None
    revision: str | None = None
    date: datetime.date | None = None
    """What a chat template that writes today's date is told."""


_TARGETS = ("target_modules", "exclude_modules")
_LAYERS = (*_TARGETS, "layers_to_transform", "layers_pattern")
_PATTERNS = ("rank_pattern", "alpha_pattern")
_LYCORIS = (*_LAYERS, *_PATTERNS, "r", "alpha", "rank_dropout", "module_dropout", "init_weights")
MERGEABLE: Mapping[str, tuple[str, ...]] = {
    "LORA": (
        *_LAYERS, *_PATTERNS, "r", "lora_alpha", "lora_dropout", "fan_in_fan_out", "use_rslora", "use_dora",
        "init_lora_weights", "target_parameters",
    ),
    "IA3": (*_TARGETS, "feedforward_modules", "fan_in_fan_out", "init_ia3_weights"),
    "LOHA": _LYCORIS,
    "LOKR": (*_LYCORIS, "decompose_both", "decompose_factor", "rank_dropout_scale"),
    "VERA": (
        "target_modules", "layers_to_transform", "layers_pattern", "r", "projection_prng_key", "save_projection",
        "vera_dropout", "d_initial", "fan_in_fan_out", "init_weights",
    ),
    "OFT": (
        *_LAYERS, "r", "oft_block_size", "fan_in_fan_out", "init_weights", "coft", "eps",
        "block_share", "use_cayley_neumann", "num_cayley_neumann_terms",
    ),
}  # fmt: skip
"""Types whose update becomes part of the weights after training, with their settings."""
PROMPT_LEARNING: Mapping[str, tuple[str, ...]] = {
    "PREFIX_TUNING": ("num_virtual_tokens", "prefix_projection", "encoder_hidden_size", "init_weights"),
    "PROMPT_TUNING": ("num_virtual_tokens", "prompt_tuning_init"),
}
"""Types that put trained virtual tokens before a sequence and leave the weights alone, with their settings."""
TYPES: Mapping[str, tuple[str, ...]] = {**MERGEABLE, **PROMPT_LEARNING}


def unknown_type(peft_type: Any) -> str | None:
    """What is wrong with a ``peft_type``, or None."""
    if peft_type in TYPES:
        return None
    return f"expected a peft_type that Rondo trains, got {peft_type!r}; {hint(str(peft_type).upper(), TYPES)}"
