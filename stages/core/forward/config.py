"""How pairs are laid out in a forward pass, and at what precision it is computed: configuration."""

from __future__ import annotations

from typing import Literal

Precision = Literal["bf16", "fp32"]
LayoutChoice = Literal["auto", "shared", "packed", "padded"]
"""How pairs are laid out in a forward pass (``stages.core.forward.packing``); ``auto`` is the best
layout that the model can be run in."""
LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")
"""Families (``model_type``) that are run by :class:`stages.core.forward.decoder.PackedDecoder`. Others are built of the
same parts and put them together in another way (Granite, Helium, SmolLM3)."""
KNOWN = frozenset((
    "arcee", "bitnet", "cohere", "cohere2", "cwm", "ernie4_5", "exaone4", "gemma", "gemma2", "gemma3_text", "glm",
    "glm4", "gpt2", "gpt_bigcode", "granite", "helium", "hunyuan_v1_dense", "llama", "minicpm3", "ministral",
    "ministral3", "mistral", "nemotron", "olmo", "olmo2", "olmo3", "opt", "persimmon", "phi", "phi3", "qwen2",
    "qwen3", "seed_oss", "smollm3", "stablelm", "starcoder2", "vaultgemma",
    # mixtures of experts
    "afmoe", "cohere2_moe", "deepseek_v2", "deepseek_v3", "dots1", "ernie4_5_moe", "exaone_moe", "flex_olmo",
    "glm4_moe", "glm4_moe_lite", "gpt_oss", "granitemoe", "granitemoeshared", "hunyuan_v1_moe", "mellum",
    "minimax_m2", "mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe", "solar_open",
))  # fmt: skip
"""Families (``model_type``) whose tiny random models give in packed rows what their own forward pass gives, and whose
weights can be read by shares: these are run packed without a trial, and may be loaded in shares."""
HEAD_ROWS = 1024
"""Response tokens of which logits are in memory at a time: [1024, vocabulary] in the products' precision."""
WHOLE, BLOCK = 384, 256
"""On a CPU a tree of at most so many tokens is one product of attention (several smaller ones would cost more than they
leave out); in longer ones, queries per block: the keys after a block's last query are left out of its products."""
