"""The parts of a decoder layer between its matrix products, each with a backward pass of its own.

Between the products the limit is not arithmetic but the number of passes over memory, and autograd's own rules make
many. Here every part keeps one small tensor and goes over its inputs once or twice. The residual stream is float32;
what goes into a product has the product's precision.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _norm(hidden: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    width = hidden.shape[-1]
    scale = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True).square_().div_(width).add_(eps).rsqrt_()
    normal = torch.empty_like(hidden, dtype=dtype)
    torch.mul(hidden, scale, out=normal)
    return normal.mul_(weight.to(dtype)), scale


def _norm_backward(grad: Tensor, hidden: Tensor, weight: Tensor, scale: Tensor, residual: Tensor) -> Tensor:
    """residual + scale * (g - n * mean(g * n)) with g = grad * weight and n = hidden * scale."""
    weighted = grad * weight
    share = (weighted * hidden).mean(-1, keepdim=True).mul_(scale.pow(3))
    return torch.addcmul(residual, weighted, scale).addcmul_(hidden, share, value=-1)


class _AddNorm(torch.autograd.Function):
    """Keeps the sum and one number per token."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, update: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        total = hidden if update is None else hidden + update
        normal, scale = _norm(total, weight, eps, dtype)
        ctx.save_for_backward(total, weight, scale)
        ctx.update = None if update is None else update.dtype
        return total.view_as(total) if update is None else total, normal

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        total, weight, scale = ctx.saved_tensors
        residual, grad = gradients
        passed = _norm_backward(grad, total, weight, scale, residual)
        of_weight = (grad.float() * total * scale).sum(0) if ctx.needs_input_grad[2] else None
        return passed, None if ctx.update is None else passed.to(ctx.update), of_weight, None, None


def _gate_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.aten.silu_backward(grad * up, gate), grad * F.silu(gate)


class _SwiGLU(torch.autograd.Function):
    """Keeps its inputs only."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return _gate_backward(gradients[0], gate, up)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    out = torch.empty_like(x)
    a, b = out.chunk(2, -1)
    a.copy_((first * cos).addcmul_(second, sin, value=-1))
    b.copy_((second * cos).addcmul_(first, sin))
    return out


class _Rotary(torch.autograd.Function):
    """Keeps the angles only: its reverse is the rotation back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(gradients[0], cos, -sin), None, None


class _LowRank(torch.autograd.Function):
    """One pass fewer over [tokens, in] and [tokens, out] than the sum of two layers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        down, up = a.to(x.dtype), b.to(x.dtype)
        inner = x @ down.t()
        ctx.save_for_backward(x, weight, down, up, inner)
        ctx.scale, ctx.dtype = scale, a.dtype
        return torch.addmm(x @ weight.t(), inner, up.t(), alpha=scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor, Tensor, None]:
        x, weight, down, up, inner = ctx.saved_tensors
        grad = gradients[0]
        narrow = (grad @ up).mul_(ctx.scale)
        of_x = torch.addmm(grad @ weight, narrow, down) if ctx.needs_input_grad[0] else None
        of_b = (grad.t() @ inner).to(ctx.dtype).mul_(ctx.scale)
        return of_x, None, (narrow.t() @ x).to(ctx.dtype), of_b, None


def add_norm(
    hidden: Tensor, update: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Residual addition and RMS normalisation (Zhang and Sennrich, arXiv:1910.07467) in one.

    ``hidden`` float32 [tokens, width] plus ``update`` (any precision, or None) is the new residual stream; the
    second result is that stream normalised, in ``dtype``.
    """
    total, normal = _AddNorm.apply(hidden, update, weight, eps, dtype)  # type: ignore[no-untyped-call]
    return total, normal


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer, arXiv:2002.05202), [tokens, width]."""
    result: Tensor = _SwiGLU.apply(gate, up)  # type: ignore[no-untyped-call]
    return result


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (Su et al., arXiv:2104.09864) in the half-split layout.

    ``x`` [tokens, heads, dim]; ``cos``, ``sin`` float32 [tokens, 1, dim / 2].
    """
    result: Tensor = _Rotary.apply(x, cos, sin)  # type: ignore[no-untyped-call]
    return result


def low_rank(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """A linear layer with a low-rank update, y = x W' + scale (x A') B' (LoRA, Hu et al., arXiv:2106.09685).

    ``x`` [tokens, in], ``weight`` [out, in] frozen, of the same precision; ``a`` [rank, in] and ``b`` [out, rank] may
    be float32.
    """
    result: Tensor = _LowRank.apply(x, weight, a, b, scale)  # type: ignore[no-untyped-call]
    return result
