"""How pairs are laid out in a forward pass, and at what precision it is computed: configuration."""

from __future__ import annotations

from typing import Literal

Precision = Literal["bf16", "fp32"]
LayoutChoice = Literal["auto", "shared", "packed", "padded"]
"""How pairs are laid out in a forward pass (``stages.core.forward.packing``); ``auto`` is the best
layout that the model can be run in."""
