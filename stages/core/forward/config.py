"""How pairs lie in a forward pass and how precisely it is worked out: configuration."""

from __future__ import annotations

from typing import Literal

Precision = Literal["bf16", "fp32"]
LayoutChoice = Literal["auto", "shared", "packed", "padded"]
"""How pairs lie in a forward pass (``stages.core.forward.packing``); ``auto`` is the best
that the model can be run in."""
