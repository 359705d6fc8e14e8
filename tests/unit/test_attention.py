"""Segmented attention against plain masked softmax attention."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.core.forward import attention
from stages.core.forward.attention import segmented_attention
from stages.core.forward.flex import flex, row_length
from stages.core.forward.segments import PLAIN, Segment, Segments, Variant

TREES: dict[str, Segments] = {
    "one sequence": (Segment(0, 3, 4),),
    "one tree": (Segment(0, 3, 4, 2),),
    "several": (Segment(0, 2, 3, 4), Segment(9, 3, 2), Segment(14, 1, 1, 3)),
    "gaps": (Segment(1, 2, 2, 1), Segment(8, 1, 0, 2)),
    "long": (Segment(0, 11, 9, 14), Segment(34, 5, 13, 3)),
}
HEADS = [(2, 2), (4, 2), (3, 1)]
"""(heads, key heads)"""


def tokens(segments: Segments) -> int:
    return max(segment.start + segment.length for segment in segments) + 3


def random(
    segments: Segments, heads: tuple[int, int], dim: int = 4, value_dim: int | None = None, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    sizes = ((heads[0], dim), (heads[1], dim), (heads[1], value_dim or dim))
    shapes = [(tokens(segments), *size) for size in sizes]
    q, k, v = (torch.randn(shape, **{"dtype": torch.float64, **options}) for shape in shapes)
    return q, k, v


def visible(segments: Segments, window: int | None = None) -> Tensor:
    """The definition, token by token: [tokens, tokens], whether the row sees the column."""
    place = {}
    for number, s in enumerate(segments):
        for at in range(s.length):
            branch = "prompt" if at < s.prompt else "chosen" if at < s.prompt + s.chosen else "rejected"
            place[s.start + at] = (number, branch, at - s.chosen if branch == "rejected" else at)
    seen = torch.zeros(tokens(segments), tokens(segments), dtype=torch.bool)
    for row, (tree, branch, position) in place.items():
        for column, (other_tree, other, before) in place.items():
            near = window is None or position - before < window
            seen[row, column] = near and column <= row and tree == other_tree and other in ("prompt", branch)
    return seen


def plain(q: Tensor, k: Tensor, v: Tensor, segments: Segments, variant: Variant = PLAIN) -> Tensor:
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    seen = visible(segments, variant.window)
    scores = torch.einsum("qhd,khd->hqk", q, k) * (variant.scale or 1 / math.sqrt(q.shape[2]))
    if variant.cap is not None:
        scores = variant.cap * (scores / variant.cap).tanh()
    weights = scores.masked_fill(~seen, -math.inf)
    if variant.sinks is not None:
        weights = torch.cat([weights, variant.sinks[:, None, None].expand(-1, len(q), 1).to(q)], -1)
    weights = weights.softmax(-1).nan_to_num(0)[..., : len(k)]
    return torch.einsum("hqk,khd->qhd", weights, v)


SINKS = torch.tensor([0.5, -1.0, 2.0, 0.0])
VARIANTS = {
    "scale": Variant(scale=0.7),
    **{f"window of {size}": Variant(window=size) for size in (1, 2, 5, 9, 40)},
    "cap": Variant(cap=0.8),
    "sinks": Variant(sinks=SINKS),
    "all": Variant(0.7, 5, 0.8, SINKS),
}


@pytest.fixture(params=[384, 256, 4, 1], ids="blocks of {}".format)
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The largest is for trees in one product."""
    monkeypatch.setattr(attention, "BLOCK", request.param)
    monkeypatch.setattr(attention, "WHOLE", 384 if request.param == 384 else 0)
    return int(request.param)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("name", TREES)
def test_it_is_masked_softmax_attention(name: str, heads: tuple[int, int], block: int) -> None:
    q, k, v = random(TREES[name], heads)
    found = segmented_attention(q, k, v, TREES[name])
    torch.testing.assert_close(found, plain(q, k, v, TREES[name]), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("name", TREES)
def test_its_gradients_are_those_of_masked_softmax_attention(name: str, heads: tuple[int, int], block: int) -> None:
    inputs = random(TREES[name], heads, requires_grad=True)
    upstream = torch.randn_like(inputs[0])
    found = torch.autograd.grad(segmented_attention(*inputs, TREES[name]), inputs, upstream)
    expected = torch.autograd.grad(plain(*inputs, TREES[name]), inputs, upstream)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, atol=1e-12, rtol=1e-10)
        assert own.abs().max() > 0.01


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", TREES)
def test_what_families_change_about_it(name: str, variant: str, block: int) -> None:
    """Values and gradients, with values of another size than keys."""
    inputs = random(TREES[name], (4, 2), value_dim=3, requires_grad=True)
    found, expected = (function(*inputs, TREES[name], VARIANTS[variant]) for function in (segmented_attention, plain))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    upstream = torch.randn_like(expected)
    for own, other in zip(*(torch.autograd.grad(value, inputs, upstream) for value in (found, expected)), strict=True):
        torch.testing.assert_close(own, other, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("variant", [Variant(), Variant(window=2), Variant(cap=0.8, sinks=SINKS[:2])])
@pytest.mark.parametrize("heads", [(2, 2), (2, 1)])
def test_its_gradients_are_its_slopes(heads: tuple[int, int], variant: Variant, block: int) -> None:
    segments = (Segment(0, 2, 1, 2), Segment(5, 1, 2))
    inputs = random(segments, heads, dim=2, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q, k, v: segmented_attention(q, k, v, segments, variant), inputs)


def test_rows_of_no_segment_come_out_as_zero_and_get_no_gradient(block: int) -> None:
    segments = TREES["gaps"]
    inputs = random(segments, (4, 2), requires_grad=True)
    outside = ~visible(segments).any(1)
    out = segmented_attention(*inputs, segments)
    assert outside.tolist() == [True, *[False] * 5, True, True, *[False] * 3, True, True, True]
    assert out[outside].eq(0).all()
    out.square().sum().backward()
    for tensor in inputs:
        assert tensor.grad is not None
        assert tensor.grad[outside].eq(0).all()
        assert tensor.grad[~outside].ne(0).any()


def changed(inputs: tuple[Tensor, ...], rows: slice) -> tuple[Tensor, ...]:
    """Other queries, keys and values in some rows."""
    copies = tuple(tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in inputs)
    with torch.no_grad():
        for tensor in copies:
            tensor[rows] = 5 * torch.randn_like(tensor[rows])
    return copies


TREE = Segment(20, 9, 14, 17)
NEIGHBOURS = (Segment(0, 5, 8, 7), TREE, Segment(60, 11, 9))
PARTS = {"prompt": slice(20, 29), "chosen": slice(29, 43), "rejected": slice(43, 60)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("change", "same"),
    [
        (PARTS["rejected"], ["prompt", "chosen"]),
        (PARTS["chosen"], ["prompt", "rejected"]),
        (slice(0, 20), ["prompt", "chosen", "rejected"]),
        (slice(60, 80), ["prompt", "chosen", "rejected"]),
    ],
    ids=["rejected", "chosen", "the segment before", "the segment after"],
)
def test_nothing_leaks_not_a_bit(change: slice, same: list[str], dtype: torch.dtype, block: int) -> None:
    """What a token may not see changes neither its value nor the gradient that comes from its value."""
    inputs = random(NEIGHBOURS, (4, 2), dim=16, dtype=dtype, requires_grad=True)
    others = changed(inputs, change)
    out, other = (segmented_attention(*given, NEIGHBOURS) for given in (inputs, others))
    for part in same:
        assert torch.equal(out[PARTS[part]], other[PARTS[part]])
    assert not torch.equal(out[change], other[change])
    upstream = torch.zeros_like(out)
    for part in same:
        upstream[PARTS[part]] = torch.randn_like(upstream[PARTS[part]])
    gradients = [torch.autograd.grad(value, given, upstream) for value, given in ((out, inputs), (other, others))]
    for own, changed_one in zip(*gradients, strict=True):
        for part in same:
            assert torch.equal(own[PARTS[part]], changed_one[PARTS[part]])
        assert own[change].eq(0).all()


def test_a_token_sees_no_later_one(block: int) -> None:
    segments = (Segment(0, 6, 9, 7),)
    inputs = random(segments, (4, 2), dim=16, dtype=torch.float32)
    out = segmented_attention(*inputs, segments)
    for at in (3, 10, 18):
        later = segmented_attention(*changed(inputs, slice(at + 1, 22)), segments)
        torch.testing.assert_close(out[: at + 1], later[: at + 1], atol=1e-6, rtol=1e-6)
        assert not torch.allclose(out[at + 1 : 22], later[at + 1 : 22], atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_segment_has_the_same_bits_alone_and_among_others(dtype: torch.dtype, block: int) -> None:
    q, k, v = random(NEIGHBOURS, (4, 2), dim=16, dtype=dtype)
    among = segmented_attention(q, k, v, NEIGHBOURS)[20:60]
    alone = segmented_attention(q[20:60], k[20:60], v[20:60], (Segment(0, 9, 14, 17),))
    assert torch.equal(among, alone)


def test_a_shared_prompt_has_the_same_bits_as_one_for_each_branch_in_bfloat16(block: int) -> None:
    q, k, v = random((TREE,), (4, 2), dim=16, dtype=torch.bfloat16)
    out = segmented_attention(q, k, v, (TREE,))
    rejected = torch.cat([torch.arange(20, 29), torch.arange(43, 60)])
    alone = segmented_attention(q[rejected], k[rejected], v[rejected], (Segment(0, 9, 17),))
    assert torch.equal(out[43:60], alone[9:])
    chosen = segmented_attention(q[20:43], k[20:43], v[20:43], (Segment(0, 9, 14),))
    assert torch.equal(out[20:43], chosen)


@pytest.mark.parametrize("variant", [PLAIN, *VARIANTS.values()])
@pytest.mark.parametrize("name", TREES)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_on_other_devices_is_the_same(name: str, variant: Variant) -> None:
    """Not compiled, on CPU: what goes into the kernels is what is tested."""
    segments = TREES[name]
    inside = visible(segments).any(1)
    for heads in HEADS:
        own = replace(variant, sinks=None if variant.sinks is None else SINKS[: heads[0]])
        inputs = random(segments, heads, dtype=torch.float32)
        found, expected = flex(*inputs, segments, own)[inside], plain(*inputs, segments, own)[inside]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_rows_on_a_gpu_have_few_lengths_and_little_padding() -> None:
    lengths = {row_length(tokens) for tokens in range(1, 16_385)}
    assert len([length for length in lengths if length > 1024]) == 4 * 8
    assert all(length % 128 == 0 for length in lengths)
    assert all(tokens <= row_length(tokens) <= max(tokens * 1.125, tokens + 127) for tokens in range(1, 40_000))
    assert [row_length(tokens) for tokens in (1, 128, 129, 8192, 8193)] == [128, 128, 256, 8192, 9216]
