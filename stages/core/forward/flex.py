"""Attention over packed rows on a GPU: torch's flex attention, whose kernels skip what the mask leaves out.

What is compiled is compiled for a number of tokens. Rows are padded to a few numbers (:func:`row_length`), so that
after the first micro-batches nothing is compiled any more.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

from stages.core.forward.segments import Segments, Variant
from stages.core.forward.transfer import send

_BLOCK = 128
"""Tokens along a side of the mask's blocks."""
_STEPS = 8
"""Row lengths between a power of two and the next."""
_SHAPES = 64
"""Compiled versions that torch keeps of one function; by default it gives up after 8."""


def row_length(tokens: int) -> int:
    """The length that a row of so many tokens is padded to: at most an eighth longer, or a block."""
    step = max(_BLOCK, (1 << max(tokens, 1).bit_length() - 1) // _STEPS)
    return -(-tokens // step) * step


def flex(q: Tensor, k: Tensor, v: Tensor, segments: Segments, variant: Variant) -> Tensor:
    """As ``segmented_attention``; rows outside all segments come out as anything finite."""
    heads, groups = q.shape[1], q.shape[1] // k.shape[1]
    if groups & (groups - 1):  # the kernels know groups of 2, 4, 8 ... heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    out = (_compiled(flex_attention) if q.is_cuda else _plain)(
        *(x.transpose(0, 1)[None] for x in (q, k, v)),
        score_mod=None if variant.cap is None else _capped(variant.cap),
        block_mask=_block_mask(segments, q.shape[0], variant.window, q.device),
        scale=variant.scale,
        enable_gqa=k.shape[1] != heads,
        return_aux=None if variant.sinks is None else AuxRequest(lse=True),
    )
    if variant.sinks is not None:
        out, aux = out
        # exp(lse) / (exp(lse) + exp(sink)): the sink's share of the softmax goes to nothing.
        out = out * torch.sigmoid(aux.lse - variant.sinks.float()[None, :, None])[..., None].to(out.dtype)
    result: Tensor = out[0].transpose(0, 1)
    return result


_plain: Any = flex_attention  # torch does not say what it returns


@lru_cache(maxsize=2)
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.config.recompile_limit = max(_SHAPES, torch._dynamo.config.recompile_limit)
    made: Callable[..., Any] = torch.compile(function, dynamic=False)
    return made


@lru_cache(maxsize=8)
def _capped(cap: float) -> Callable[..., Tensor]:
    """The same function for the same cap: another one would be compiled anew."""

    def score(value: Tensor, _batch: Tensor, _head: Tensor, _row: Tensor, _column: Tensor) -> Tensor:
        return cap * torch.tanh(value / cap)

    return score


@lru_cache(maxsize=4)
def _block_mask(segments: Segments, tokens: int, window: int | None, device: torch.device) -> Any:
    """Which token sees which, once per row and window (all layers of a kind ask for the same)."""
    tree, branch, position = (send(part, device) for part in _places(segments, tokens))

    def sees(_batch: Tensor, _head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        same = (branch[column] == 0) | (branch[column] == branch[row])
        return (row >= column) & (tree[row] == tree[column]) & same

    def sees_near(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        assert window is not None
        return sees(batch, head, row, column) & (position[row] - position[column] < window)

    make = _compiled(create_block_mask) if device.type == "cuda" else create_block_mask
    return make(sees if window is None else sees_near, None, None, tokens, tokens, device=str(device))


def _places(segments: Segments, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of every token its tree (-1 for none), its branch (0 for the prompt) and its position; int32 [tokens] each."""
    tree, branch = (torch.full((tokens,), value, dtype=torch.int32) for value in (-1, 0))
    position = torch.arange(tokens, dtype=torch.int32)
    for number, s in enumerate(segments):
        chosen, rejected, end = s.start + s.prompt, s.start + s.prompt + s.chosen, s.start + s.length
        tree[s.start : end] = number
        branch[chosen:rejected], branch[rejected:end] = 1, 2
        position[s.start : rejected] -= s.start
        position[rejected:end] -= s.start + s.chosen
    return tree, branch, position
