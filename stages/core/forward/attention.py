"""Causal attention over packed sequences, some of which share their beginning.

A packed row holds segments one after another. A segment is a tree: a ``prompt`` and two branches, ``chosen`` and
``rejected``; a branch sees the prompt and itself, never the other branch. A plain sequence is a segment whose
second branch is empty. No score is computed between segments, so that a pair's values do not depend on what it
is packed with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

_WHOLE = 384
"""A tree of at most this many tokens is one product: several smaller ones would cost more than they leave out."""
_BLOCK = 256
"""In longer ones, queries per block: the keys after a block's last query are left out of its products."""


@dataclass(frozen=True)
class Segment:
    """Where a tree lies in the packed row: tokens of its prompt and of its two branches from ``start`` on."""

    start: int
    prompt: int
    chosen: int
    rejected: int = 0

    @property
    def length(self) -> int:
        return self.prompt + self.chosen + self.rejected


Segments = tuple[Segment, ...]


def segmented_attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    """Softmax(q k' / sqrt(dim)) v within each segment's branches.

    Args:
        q: [tokens, heads, dim]; k, v: [tokens, key heads, dim], heads a multiple of key heads (grouped queries).
        segments: disjoint; rows outside all segments come out as zero.

    Returns:
        [tokens, heads, dim].
    """
    if q.device.type != "cpu":
        return _flex(q, k, v, segments)
    result: Tensor = _Attention.apply(q, k, v, segments)  # type: ignore[no-untyped-call]
    return result


@dataclass(frozen=True)
class _Product:
    """One block of queries with all keys that any of them sees: rows [first, last) against some key ranges, the
    last of which ends with the block's own rows. ``fresh``: no earlier product has seen the last range.
    ``apart``, (chosen, rejected): the last ``rejected`` rows do not see the ``chosen`` keys just before them."""

    first: int
    last: int
    keys: tuple[tuple[int, int], ...]
    fresh: bool
    apart: tuple[int, int] = (0, 0)

    @property
    def width(self) -> int:
        return sum(stop - start for start, stop in self.keys)


def _products(segment: Segment) -> Iterator[_Product]:
    """The trunk (prompt and chosen) against itself, the rejected branch against prompt and itself, in blocks.

    The last block of each comes first: it is the one that sees all keys.
    """
    if segment.length <= _WHOLE:
        first, last = segment.start, segment.start + segment.length
        yield _Product(first, last, ((first, last),), True, (segment.chosen, segment.rejected))
        return
    trunk = segment.start + segment.prompt + segment.chosen
    for first, last in _blocks(segment.start, trunk):
        yield _Product(first, last, ((segment.start, last),), last == trunk)
    prompt, end = (segment.start, segment.start + segment.prompt), trunk + segment.rejected
    for first, last in _blocks(trunk, end):
        yield _Product(first, last, (prompt, (trunk, last)), last == end)


def _blocks(start: int, stop: int) -> list[tuple[int, int]]:
    return [(first, min(first + _BLOCK, stop)) for first in range(start, stop, _BLOCK)][::-1]


@lru_cache(maxsize=64)
def _bias(rows: int, width: int, apart: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """What is added to the scores of ``rows`` queries, the last rows of ``width`` keys. Kept for the next layers."""
    hidden = torch.ones(rows, width, dtype=torch.bool).triu_(width - rows + 1)
    chosen, rejected = apart
    if rejected:
        hidden[rows - rejected :, width - rejected - chosen : width - rejected] = True
    return torch.zeros(rows, width, dtype=dtype).masked_fill_(hidden, float("-inf"))


def _keys(x: Tensor, product: _Product) -> Tensor:
    """[key heads, width, dim] of the keys (or values) of a product."""
    parts = [x[start:stop] for start, stop in product.keys]
    rows = parts[0] if len(parts) == 1 else torch.cat(parts)
    return rows.transpose(0, 1)


def _queries(x: Tensor, product: _Product, groups: int) -> Tensor:
    """[key heads, groups * rows, dim]: the heads that share a key head are adjacent."""
    rows = x[product.first : product.last]
    count, heads, dim = rows.shape
    return rows.view(count, heads // groups, groups, dim).permute(1, 2, 0, 3).reshape(-1, groups * count, dim)


def _store(target: Tensor, product: _Product, value: Tensor, groups: int) -> None:
    """The reverse of ``_queries``, into the rows of a product."""
    rows = target[product.first : product.last]
    count, heads, dim = rows.shape
    view = rows.view(count, heads // groups, groups, dim)
    view.copy_(value.view(heads // groups, groups, count, dim).permute(2, 0, 1, 3))


def _add(target: Tensor, product: _Product, value: Tensor) -> None:
    """Add [key heads, width, dim] to the rows of a product's keys; set those that hold nothing yet."""
    done = 0
    for number, (start, stop) in enumerate(product.keys):
        part = value[:, done : done + stop - start].transpose(0, 1)
        if product.fresh and number == len(product.keys) - 1:
            target[start:stop] = part
        else:
            target[start:stop] += part
        done += stop - start


def _unfilled(like: Tensor, segments: Segments) -> Tensor:
    """A tensor whose rows are zero outside all segments and undefined inside."""
    made, end = torch.empty_like(like), 0
    for segment in segments:
        made[end : segment.start] = 0
        end = segment.start + segment.length
    made[end:] = 0
    return made


class _Attention(torch.autograd.Function):
    """Plain batched products. In bfloat16 they give every row the same bits whatever other rows there are, which
    torch's fused CPU attention does not, and they are about three times as fast at a few hundred tokens."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
        groups = q.shape[1] // k.shape[1]
        scaled = q * q.shape[2] ** -0.5
        out = _unfilled(q, segments)
        saved = []
        for product in (p for segment in segments for p in _products(segment)):
            count = product.last - product.first
            bias = _bias(count, product.width, product.apart, q.dtype)
            query, key, value = _queries(scaled, product, groups), _keys(k, product), _keys(v, product)
            weights = torch.bmm(query, key.transpose(1, 2))
            weights.view(-1, groups, count, product.width).add_(bias)
            torch.softmax(weights, -1, out=weights)
            _store(out, product, torch.bmm(weights, value), groups)
            saved.append(weights)
        ctx.save_for_backward(scaled, k, v, *saved)
        ctx.segments = segments
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, *saved = ctx.saved_tensors
        groups = q.shape[1] // k.shape[1]
        grad_q, grad_k, grad_v = (_unfilled(x, ctx.segments) for x in (q, k, v))
        products = (p for segment in ctx.segments for p in _products(segment))
        for product, weights in zip(products, saved, strict=True):
            grad = _queries(gradients[0], product, groups)
            query, key, value = _queries(q, product, groups), _keys(k, product), _keys(v, product)
            _add(grad_v, product, torch.bmm(weights.transpose(1, 2), grad))
            grad = torch.bmm(grad, value.transpose(1, 2))
            grad = torch._softmax_backward_data(grad, weights, -1, weights.dtype)
            _add(grad_k, product, torch.bmm(grad.transpose(1, 2), query))
            _store(grad_q, product, torch.bmm(grad, key), groups)
        return grad_q.mul_(q.shape[2] ** -0.5), grad_k, grad_v, None


def _flex(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    """The same with torch's flex attention, whose kernels skip what the mask leaves out."""
    from torch.nn.attention.flex_attention import flex_attention

    out = flex_attention(
        q.transpose(0, 1)[None], k.transpose(0, 1)[None], v.transpose(0, 1)[None],
        block_mask=_block_mask(segments, q.shape[0], q.device), enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    assert isinstance(out, Tensor)
    return out[0].transpose(0, 1)


@lru_cache(maxsize=2)
def _block_mask(segments: Segments, tokens: int, device: torch.device) -> Any:
    """Which token sees which, once per batch (all layers ask for the same)."""
    from torch.nn.attention.flex_attention import create_block_mask

    tree = torch.full((tokens,), -1, device=device)
    branch = torch.zeros(tokens, dtype=torch.long, device=device)
    for number, s in enumerate(segments):
        tree[s.start : s.start + s.length] = number
        branch[s.start + s.prompt : s.start + s.prompt + s.chosen] = 1
        branch[s.start + s.prompt + s.chosen : s.start + s.length] = 2

    def sees(_batch: Tensor, _head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        same = (branch[column] == 0) | (branch[column] == branch[row])
        return (row >= column) & (tree[row] == tree[column]) & same

    return create_block_mask(sees, None, None, tokens, tokens, device=str(device))
