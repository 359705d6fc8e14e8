"""Causal attention over packed sequences, some of which share their beginning (:mod:`stages.core.forward.segments`).

No score is computed between segments, so that a pair's values do not depend on what it is packed with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from stages.core.forward.config import BLOCK, WHOLE
from stages.core.forward.segments import PLAIN, Segment, Segments, Variant


def segmented_attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments, variant: Variant = PLAIN) -> Tensor:
    """Softmax(scale q k') v within each segment's branches.

    Args:
        q: [tokens, heads, dim]; k: [tokens, key heads, dim], heads a multiple of key heads (grouped queries);
            v: [tokens, key heads, value dim].
        segments: disjoint; rows outside all segments come out as zero.

    Returns:
        [tokens, heads, value dim].
    """
    if q.device.type != "cpu":
        from stages.core.forward.flex import flex  # half a second that a CPU does without

        return flex(q, k, v, segments, variant)
    scale = q.shape[2] ** -0.5 if variant.scale is None else variant.scale
    if variant.cap is not None or variant.sinks is not None:
        return _by_autograd(q * scale, k, v, segments, variant)
    result: Tensor = _Attention.apply(q, k, v, segments, scale, variant.window)  # type: ignore[no-untyped-call]
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
    window: int | None = None

    @property
    def width(self) -> int:
        return sum(stop - start for start, stop in self.keys)


def _products(segment: Segment, window: int | None) -> Iterator[_Product]:
    """The trunk (prompt and chosen) against itself, the rejected branch against prompt and itself, in blocks.

    The last block of each comes first: without a window it is the one that sees all keys.
    """
    if window is not None and segment.longest <= window:
        window = None
    if segment.length <= WHOLE:
        first, last = segment.start, segment.start + segment.length
        yield _Product(first, last, ((first, last),), True, (segment.chosen, segment.rejected), window)
        return
    start, answers = segment.start, segment.start + segment.prompt
    trunk = answers + segment.chosen
    for first, last in _blocks(start, trunk):
        seen = start if window is None else max(start, first - window + 1)
        yield _Product(first, last, ((seen, last),), last == trunk and window is None, window=window)
    for first, last in _blocks(trunk, trunk + segment.rejected):
        out = 0 if window is None else max(0, segment.prompt + first - trunk - window + 1)  # positions out of sight
        prompt, own = (start + min(out, segment.prompt), answers), (trunk + max(0, out - segment.prompt), last)
        keys = (own,) if out >= segment.prompt else (prompt, own)
        yield _Product(first, last, keys, last == trunk + segment.rejected and window is None, window=window)


def _blocks(start: int, stop: int) -> list[tuple[int, int]]:
    return [(first, min(first + BLOCK, stop)) for first in range(start, stop, BLOCK)][::-1]


@lru_cache(maxsize=64)
def _bias(rows: int, width: int, apart: tuple[int, int], window: int | None, dtype: torch.dtype) -> Tensor:
    """What is added to the scores of ``rows`` queries, the last rows of ``width`` keys. Kept for the next layers."""
    query, key = torch.arange(width - rows, width)[:, None], torch.arange(width)[None]
    hidden = key > query
    chosen, rejected = apart
    branch = width - rejected  # rows from here on do not see the chosen keys before them, and stand where these stand
    hidden |= (query >= branch) & (key >= branch - chosen) & (key < branch)
    if window is not None:
        hidden |= query - key - chosen * ((query >= branch) & (key < branch)) >= window
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
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float, window: int | None
    ) -> Tensor:
        groups = q.shape[1] // k.shape[1]
        scaled = q * scale
        out = _unfilled(q if q.shape[2] == v.shape[2] else q.new_empty(*q.shape[:2], v.shape[2]), segments)
        saved = []
        for product in (p for segment in segments for p in _products(segment, window)):
            count = product.last - product.first
            bias = _bias(count, product.width, product.apart, product.window, q.dtype)
            query, key, value = _queries(scaled, product, groups), _keys(k, product), _keys(v, product)
            weights = torch.bmm(query, key.transpose(1, 2))
            weights.view(-1, groups, count, product.width).add_(bias)
            torch.softmax(weights, -1, out=weights)
            _store(out, product, torch.bmm(weights, value), groups)
            saved.append(weights)
        ctx.save_for_backward(scaled, k, v, *saved)
        ctx.segments, ctx.scale, ctx.window = segments, scale, window
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        q, k, v, *saved = ctx.saved_tensors
        groups = q.shape[1] // k.shape[1]
        cut = ctx.window is not None and any(segment.longest > ctx.window for segment in ctx.segments)
        made = torch.zeros_like if cut else partial(_unfilled, segments=ctx.segments)
        grad_q, grad_k, grad_v = (made(x) for x in (q, k, v))
        products = (p for segment in ctx.segments for p in _products(segment, ctx.window))
        for product, weights in zip(products, saved, strict=True):
            grad = _queries(gradients[0], product, groups)
            query, key, value = _queries(q, product, groups), _keys(k, product), _keys(v, product)
            _add(grad_v, product, torch.bmm(weights.transpose(1, 2), grad))
            grad = torch.bmm(grad, value.transpose(1, 2))
            grad = torch._softmax_backward_data(grad, weights, -1, weights.dtype)
            _add(grad_k, product, torch.bmm(grad.transpose(1, 2), query))
            _store(grad_q, product, torch.bmm(grad, key), groups)
        return grad_q.mul_(ctx.scale), grad_k, grad_v, None, None, None


def _by_autograd(scaled: Tensor, k: Tensor, v: Tensor, segments: Segments, variant: Variant) -> Tensor:
    """For the few families that cap their scores or have sinks: the same products, one rule of autograd after another.
    ``scaled``: the queries times the scale."""
    groups = scaled.shape[1] // k.shape[1]
    blocks: dict[int, Tensor] = {}
    for product in (p for segment in segments for p in _products(segment, variant.window)):
        count = product.last - product.first
        query, key, value = _queries(scaled, product, groups), _keys(k, product), _keys(v, product)
        scores = torch.bmm(query, key.transpose(1, 2)).view(-1, groups, count, product.width)
        if variant.cap is not None:
            scores = variant.cap * torch.tanh(scores / variant.cap)
        scores = scores + _bias(count, product.width, product.apart, product.window, scores.dtype)
        if variant.sinks is not None:
            sinks = variant.sinks.to(scores.dtype).view(-1, groups, 1, 1).expand(-1, -1, count, 1)
            scores = torch.cat([scores, sinks], -1)
        weights = torch.softmax(scores, -1)[..., : product.width].reshape(-1, groups * count, product.width)
        mixed = torch.bmm(weights, value).view(-1, groups, count, v.shape[2])
        blocks[product.first] = mixed.permute(2, 0, 1, 3).reshape(count, -1, v.shape[2])
    rows, end = [], 0
    for first in sorted(blocks):
        rows += [blocks[first].new_zeros(first - end, *blocks[first].shape[1:]), blocks[first]]
        end = first + len(blocks[first])
    return torch.cat([*rows, rows[-1].new_zeros(len(scaled) - end, *rows[-1].shape[1:])])
