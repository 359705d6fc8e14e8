"""Tensors on their way to a card, and what it costs to look at one there."""

from __future__ import annotations

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU's tensor on a device, without waiting for it. A card takes pinned memory by itself; of any other the copy
    would begin only when all that the card was given before is done."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
