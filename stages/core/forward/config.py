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
HEAD_ROWS = 1024
"""Response tokens of which logits are in memory at a time: [1024, vocabulary] in the products' precision."""
WHOLE, BLOCK = 384, 256
"""On a CPU a tree of at most so many tokens is one product of attention (several smaller ones would cost more than they
leave out); in longer ones, queries per block: the keys after a block's last query are left out of its products."""
