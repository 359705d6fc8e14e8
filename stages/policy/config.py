"""Where a base model comes from, and which adapters Rondo trains and loads: configuration."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from stages.base import Config
from stages.hints import hint

Quantization = Literal["4bit", "8bit"]


class ModelSource(Config):
    """Where the base model comes from.

    ``model`` is a folder in Hugging Face format, ``pkg://package/file.gguf`` (a GGUF file inside an installed
    package), a hub id with a ``revision`` (a commit, or a tag or branch, which is resolved to its commit), or
    ``champion://NAME``: the champion of a pipeline in the same store, ``champion://NAME@3`` the third one it had.
    ``adapter`` is a folder in PEFT format that is merged into the model before anything else.
    """

    model: Annotated[str, Field(min_length=1)]
    revision: str | None = None
    adapter: Annotated[str, Field(min_length=1)] | None = None
    date: datetime.date | None = None
    """What a chat template that writes today's date takes for it; else the same data would be tokenised differently
    every day."""


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
