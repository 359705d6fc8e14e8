"""The language-model head and the log-softmax on response tokens, in chunks, with the gradient computed on the way.

The logits of all response tokens are never in memory together, and none are computed twice: while a chunk's
probabilities are at hand, the loss of its pairs is asked for and the gradient taken through the head at once. All
that is kept for the backward pass is one hidden-size row per token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from stages.core.forward.config import HEAD_ROWS
from stages.core.forward.packing import Batch

Weigh = Callable[[int, int, Tensor, Tensor], Tensor]
"""``weigh(first, last, logprobs, confidences)``: the derivative of the loss with respect to the log-probabilities of
the pairs ``first`` to ``last``, both float32 [2 * (last - first)], chosen and rejected in turn."""

_SLICE = 16
"""Rows per pass of the softmax: small enough for the cache."""


def exponentials(logits: Tensor, targets: Tensor, exact: Tensor) -> tuple[Tensor, Tensor]:
    """Turn a chunk of logits into exp(logit - largest of the row), in place.

    Args:
        logits: [rows, vocabulary], any precision.
        targets: int64 [rows].
        exact: float32 [rows], the target's logit before it was rounded; it replaces the rounded one, so that a
            near-certain token's log-probability is close to 0 and not a rounding error away from it.

    Returns:
        float32 [rows] each: the log-probability of the target, and the sum of the row's exponentials.
    """
    largest = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    total = torch.empty_like(largest)
    step = _SLICE if logits.device.type == "cpu" else len(logits)
    for start in range(0, len(logits), step):
        part = slice(start, start + step)
        values = logits[part].float()
        values.scatter_(1, targets[part, None], exact[part, None])
        largest[part] = values.amax(-1)
        values.sub_(largest[part, None]).exp_()
        total[part] = values.sum(-1)
        logits[part] = values
    return exact - largest - total.log(), total


class FusedHead(torch.autograd.Function):
    """Log-probabilities of response tokens, and the gradient of the loss computed from them.

    The scalar that comes out carries the gradient: its value has no meaning, its backward pass hands on what the
    forward pass has computed.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, batch: Batch, weigh: Weigh | None, confident: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``hidden`` [rows, width] of ``batch.rows``, ``weight`` [vocabulary, width] of the same precision; returns
        the scalar, and float32 [2 * pairs] each: sums of log-probabilities, and means of log p - log sum p^2
        (zeros unless ``confident``)."""
        grads = weigh is not None and any(ctx.needs_input_grad[:2])
        of_hidden = torch.zeros_like(hidden) if grads else None
        of_weight = torch.empty_like(weight, dtype=torch.float32) if grads and ctx.needs_input_grad[1] else None
        fresh = True
        sums = torch.zeros(2, 2 * batch.pairs, dtype=torch.float32, device=hidden.device)
        tokens = batch.tokens_of().clamp(min=1) if confident else None
        for first, last in _groups(batch.bounds, HEAD_ROWS):
            rows = slice(batch.bounds[first], batch.bounds[last])
            own = slice(2 * first, 2 * last)
            chunks = [_Chunk(hidden, weight, batch, part) for part in _split(rows, HEAD_ROWS)]
            kept = None
            for chunk in chunks:
                kept = None  # freed before the next is made
                kept = chunk.compute(sums, confident)
            if tokens is not None:
                sums[1, own] /= tokens[own]
            if not grads:
                continue
            assert weigh is not None
            assert of_hidden is not None
            slopes = weigh(first, last, sums[0, own], sums[1, own])
            for chunk in chunks:
                if len(chunks) > 1:  # a pair longer than a chunk: its probabilities are recomputed
                    kept = None
                    kept = chunk.compute(None, False)
                chunk.gradients(kept, slopes[chunk.sequences - 2 * first], of_hidden, of_weight, fresh)
                fresh = False
        if fresh and of_weight is not None:  # no token counted
            of_weight.zero_()
        ctx.save_for_backward(of_hidden, of_weight)
        ctx.dtype = weight.dtype
        logprobs, confidences = sums
        ctx.mark_non_differentiable(logprobs, confidences)
        return hidden.new_zeros((), dtype=torch.float32), logprobs, confidences

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        of_hidden, of_weight = ctx.saved_tensors
        if of_hidden is None:
            return None, None, None, None, None
        # Almost always 1; but to look whether it is would be to wait for the card.
        of_hidden.mul_(gradients[0])
        if of_weight is not None:
            of_weight.mul_(gradients[0])
        return of_hidden, None if of_weight is None else of_weight.to(ctx.dtype), None, None, None


class _Chunk:
    """Some response tokens on their way through the head."""

    def __init__(self, hidden: Tensor, weight: Tensor, batch: Batch, rows: slice) -> None:
        self.rows = rows
        self.weight = weight
        self.targets, self.sequences = batch.targets[rows], batch.sequences[rows]
        # Products are slow at odd numbers of rows: padded with zeros.
        self.count = rows.stop - rows.start
        self.hidden = hidden.new_zeros(self.count + -self.count % 32, hidden.shape[1])
        self.hidden[: self.count] = hidden[rows]

    def compute(self, sums: Tensor | None, confident: bool) -> tuple[Tensor, Tensor]:
        """Exponentials [rows, vocabulary] and their sums; the sequences' log-probabilities are added to ``sums``."""
        logits = self.hidden @ self.weight.t()
        used = logits[: self.count]
        exact = (self.hidden[: self.count].float() * self.weight[self.targets].float()).sum(-1)
        logprobs, totals = exponentials(used, self.targets, exact)
        if sums is not None:
            sums[0].index_add_(0, self.sequences, logprobs)
        if sums is not None and confident:
            # In one go where memory is fast and starting a thousand small jobs is not.
            whole = used.is_cuda
            squares = (
                used.float().square().sum(-1) if whole else torch.stack([row.float().square().sum() for row in used])
            )
            sums[1].index_add_(0, self.sequences, logprobs - (squares.log() - 2 * totals.log()))
        return logits, totals

    def gradients(
        self,
        kept: tuple[Tensor, Tensor] | None,
        slopes: Tensor,
        of_hidden: Tensor,
        of_weight: Tensor | None,
        fresh: bool,
    ) -> None:
        """d log p(t) / d h = W[t] - sum_v p(v) W[v]; the softmax's 1 / total scales rows of the small matrices.

        ``fresh``: ``of_weight`` holds nothing yet.
        """
        assert kept is not None
        values, totals = kept
        target = self.weight[self.targets].float()
        pull = (values @ self.weight)[: self.count].float()
        shares = (-slopes / totals)[:, None]
        of_hidden[self.rows] = (pull * shares + slopes[:, None] * target).to(of_hidden.dtype)
        if of_weight is not None:
            rows = self.hidden[: self.count].float()
            scaled = torch.zeros_like(self.hidden)
            scaled[: self.count] = (rows * shares).to(scaled.dtype)
            # With out= the product is row-major, which is added far faster than a transposed one.
            product = torch.mm(values.t(), scaled, out=torch.empty_like(self.weight))
            of_weight.copy_(product) if fresh else of_weight.add_(product)
            of_weight.index_add_(0, self.targets, slopes[:, None] * rows)


def _groups(bounds: tuple[int, ...], most: int) -> Iterator[tuple[int, int]]:
    """Runs of pairs with at most ``most`` rows together (a longer pair alone)."""
    first = 0
    for last in range(1, len(bounds)):
        if last + 1 == len(bounds) or bounds[last + 1] - bounds[first] > most:
            yield first, last
            first = last


def _split(rows: slice, most: int) -> list[slice]:
    return [slice(start, min(start + most, rows.stop)) for start in range(rows.start, rows.stop, most)]
