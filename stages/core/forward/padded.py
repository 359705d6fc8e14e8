"""The model's own forward pass over a rectangle of sequences, each padded on its right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor
from transformers import masking_utils

_alone: ContextVar[bool] = ContextVar("every row of a forward pass is one sequence", default=False)
_find = masking_utils.find_packed_sequence_indices


@contextmanager
def one_sequence_a_row() -> Iterator[None]:
    """In here transformers does not look for several sequences in a row: on a card it would wait for the answer in
    every forward pass, until all that the card was given before is done."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def _found(position_ids: Tensor, *more: Any, **named: Any) -> Tensor | None:
    return None if _alone.get() else _find(position_ids, *more, **named)


masking_utils.find_packed_sequence_indices = _found
