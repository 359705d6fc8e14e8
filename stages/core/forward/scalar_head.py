"""Models with one number for a whole sequence: what keeps their number exact."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


class ExactHead(torch.nn.Module):
    """A head in float32 whatever the products before it are in: bfloat16 tells rewards from 4 to 8 apart only in steps
    of 1/32, and answers to a prompt often differ by less."""

    def __init__(self, head: torch.nn.Module) -> None:
        super().__init__()
        self.head = head.float()

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            made: Tensor = self.head(hidden.float())
            return made


def make_head_exact(model: Any) -> None:
    """Put :class:`ExactHead` around the head of a decoder with a score; other models keep theirs."""
    if isinstance(head := getattr(model, "score", None), torch.nn.Linear):
        model.score = ExactHead(head)


def unused_pad(sequences: Iterable[Sequence[int]], vocabulary: int) -> int:
    """An id that is in none of the sequences: transformers takes the last token that is not padding for a sequence's
    end, so that padding with a token of the text would cut the text."""
    used = set().union(*sequences)
    return next(index for index in range(vocabulary) if index not in used)
