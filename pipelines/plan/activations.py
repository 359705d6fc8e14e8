"""What one forward and backward pass keeps in memory, in bytes, from a model's shape.

For each token a layer of ``stages.core.forward.decoder`` keeps, with W the width, Q and K those of all queries and all
keys, I the inner width, b bytes in the products' precision:

    8 W             the residual stream before each of its two norms, float32
    b (Q + 2 K)     queries, keys and values after rotation
    b H S           attention's weights on a CPU, S keys a query on average; on a GPU b Q + 4 H instead
    2 b I           gate and up
    b W, b W        the norms' results, if a product that takes them is trained or carries an adapter
    b Q, b I        likewise what goes into o_proj and down_proj

A layer of transformers (layout ``padded``) keeps more: the normalised stream in float32 where the norm is trained, what
goes into each product once more where it has to be rounded, and the activated gate.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

from pipelines.plan.shape import Shape
from stages.core.forward.config import BLOCK, HEAD_ROWS, WHOLE, LayoutChoice, Precision


@dataclass(frozen=True)
class Pass:
    """How a micro-batch of so many ``tokens`` is run; ``longest`` is its longest sequence. ``size`` are the bytes of a
    number in the products' precision; ``adapted`` are the products with an adapter, None where all weights are
    trained."""

    tokens: int
    longest: int
    size: int
    device: str
    packed: bool
    adapted: Collection[str] | None

    @classmethod
    def of(
        cls, shape: Shape, precision: Precision, layout: LayoutChoice, gpu: bool, tokens: int, longest: int,
        adapted: Collection[str] | None,
    ) -> Self:  # fmt: skip
        """``auto`` is the packed row with shared prompts where the model takes it, on a GPU the padded rectangle."""
        packed = layout in ("shared", "packed") or (layout == "auto" and shape.packs and not gpu)
        size = 2 if precision == "bf16" else 4
        return cls(tokens, longest, size, "gpu" if gpu else "cpu", packed, adapted)

    @property
    def full(self) -> bool:
        return self.adapted is None

    def keeps(self, *products: str) -> int:
        """How many of the products keep what goes into them."""
        return len(products) if self.adapted is None else sum(name in self.adapted for name in products)

    def boundary(self, shape: Shape) -> int:
        """What checkpointing keeps of a layer: what goes into it."""
        return self.tokens * shape.width * (4 + self.size if self.packed else 4)


def kept(shape: Shape, run: Pass) -> int:
    """What a layer keeps for the backward pass."""
    b, width, queries = run.size, shape.width, shape.queries
    row = 8 * width + b * (queries + 2 * shape.keys + 2 * shape.inner)
    into_attention, into_mlp = run.keeps("q_proj", "k_proj", "v_proj"), run.keeps("gate_proj", "up_proj")
    if run.packed:
        row += b * width * (bool(into_attention) + bool(into_mlp))
    else:
        row += (8 * width if run.full else 0) + b * shape.inner
        row += b * width * (into_attention + into_mlp if b == 2 else bool(into_attention) + bool(into_mlp))
    row += b * queries * run.keeps("o_proj") + b * shape.inner * run.keeps("down_proj")
    return run.tokens * (row + _attention(shape, run))


def _attention(shape: Shape, run: Pass) -> int:
    """Of attention itself, for each token: its weights on a CPU, its result and the softmax's sums on a GPU."""
    if run.device == "gpu":
        return run.size * shape.queries + 4 * shape.heads
    length = min(run.longest, run.tokens)
    if not run.packed:  # transformers' eager attention: softmax in float32 and rounded, keys and values repeated
        return shape.heads * length * (4 + run.size) + 2 * run.size * shape.queries
    return run.size * shape.heads * (length if length <= WHOLE else (length + BLOCK) // 2)


def backward(shape: Shape, run: Pass) -> int:
    """What a layer's backward pass has in memory besides: gradients of its inner parts and of the residual stream, and
    of its largest matrix in the products' precision and in float32."""
    row = run.size * (3 * shape.inner + 2 * shape.width) + 8 * shape.width
    return run.tokens * row + ((run.size + 4) * shape.inner * shape.width if run.full else 0)


def head(shape: Shape, run: Pass) -> int:
    """The final hidden states of response tokens, at most of all tokens, and their gradient. A frozen head that shares
    the embedding's weights is kept once more in bf16."""
    copy = 2 * shape.embedding if not run.full and run.size == 2 and not shape.head else 0
    return run.tokens * (4 + 2 * run.size) * shape.width + copy


def logits(shape: Shape, run: Pass) -> int:
    """A chunk of logits (on a GPU in float32 too) and, where the head is trained, its gradient: summed in float32, the
    chunk's own in the products' precision, and the weights' copy in it."""
    b, rows = run.size, min(HEAD_ROWS, run.tokens)
    chunk = rows * shape.vocabulary * (b + (4 if run.device == "gpu" else 0))
    return chunk + (shape.embedding * (4 + b + (b if b == 2 else 0)) if run.full else 0)
