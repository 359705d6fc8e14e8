"""transformers' masks, without the look for several sequences in a row that comes before each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor
from transformers import masking_utils

_known: ContextVar[bool] = ContextVar("what lies in the rows of a forward pass is known", default=False)
_find = masking_utils.find_packed_sequence_indices


@contextmanager
def rows_are_known() -> Iterator[None]:
    """In here transformers does not look for several sequences in a row: either there is one in each, or Rondo's own
    attention keeps them apart. On a card it would wait for the answer in every forward pass, until all that the card
    was given before is done."""
    token = _known.set(True)
    try:
        yield
    finally:
        _known.reset(token)


def _found(position_ids: Tensor, *more: Any, **named: Any) -> Tensor | None:
    return None if _known.get() else _find(position_ids, *more, **named)


masking_utils.find_packed_sequence_indices = _found
