"""Each part with a backward pass of its own, against the same formula left to autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.core.forward.fused import add_norm, low_rank, rotate, swiglu

TOKENS, WIDTH, EPS = 7, 6, 1e-2
FP32 = {"atol": 2e-5, "rtol": 2e-5}


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64, grad: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(grad)


def agree(own: Callable[..., Any], plain: Callable[..., Any], inputs: list[Tensor], **tolerance: float) -> None:
    """Values and gradients of all results by all inputs."""
    results = [result if isinstance(result, tuple) else (result,) for result in (own(*inputs), plain(*inputs))]
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    gradients = []
    for values in results:
        upstream = [random(*value.shape, seed=9, dtype=value.dtype, grad=False) for value in values]
        gradients.append(torch.autograd.grad(values, wanted, upstream))
    for found, expected in (*zip(*results, strict=True), *zip(*gradients, strict=True)):
        assert found.shape == expected.shape
        torch.testing.assert_close(found.double(), expected.double(), **(tolerance or FP32))
        assert expected.abs().max() > 0.01


def plain_norm(hidden: Tensor, weight: Tensor) -> Tensor:
    return hidden / (hidden.square().mean(-1, keepdim=True) + EPS).sqrt() * weight


def test_add_norm_with_an_update() -> None:
    def plain(hidden: Tensor, update: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return hidden + update, plain_norm(hidden + update, weight)

    def own(hidden: Tensor, update: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return add_norm(hidden, update, weight, EPS, torch.float32)

    inputs = [random(TOKENS, WIDTH, seed=n, dtype=torch.float32) for n in range(2)]
    agree(own, plain, [*inputs, random(WIDTH, dtype=torch.float32)])


def test_add_norm_of_the_first_layer() -> None:
    def own(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return add_norm(hidden, None, weight, EPS, torch.float32)

    inputs = [random(TOKENS, WIDTH, dtype=torch.float32), random(WIDTH, dtype=torch.float32)]
    agree(own, lambda hidden, weight: (hidden.clone(), plain_norm(hidden, weight)), inputs)


def test_add_norm_with_a_frozen_weight() -> None:
    weight = random(WIDTH, dtype=torch.float32, grad=False)

    def own(hidden: Tensor, update: Tensor) -> tuple[Tensor, Tensor]:
        return add_norm(hidden, update, weight, EPS, torch.float32)

    inputs = [random(TOKENS, WIDTH, seed=n, dtype=torch.float32) for n in range(2)]
    agree(own, lambda h, u: (h + u, plain_norm(h + u, weight)), inputs)


@pytest.mark.parametrize("used", [0, 1])
def test_add_norm_of_which_one_result_is_used(used: int) -> None:
    """The other result's gradient is then zero, or not there at all."""
    hidden, update = (random(TOKENS, WIDTH, seed=n, dtype=torch.float32) for n in range(2))
    weight = random(WIDTH, dtype=torch.float32)
    total = hidden + update
    upstream = random(TOKENS, WIDTH, seed=4, dtype=torch.float32, grad=False)
    own = add_norm(hidden, update, weight, EPS, torch.float32)[used]
    expected = (total, plain_norm(total, weight))[used]
    found = torch.autograd.grad(own, [hidden, update], upstream)
    for one, other in zip(found, torch.autograd.grad(expected, [hidden, update], upstream), strict=True):
        torch.testing.assert_close(one, other, **FP32)


def test_the_residual_stream_stays_float32_and_what_is_added_to_it_gets_its_own_precision() -> None:
    hidden = random(TOKENS, WIDTH, dtype=torch.float32)
    update = random(TOKENS, WIDTH, dtype=torch.bfloat16)
    weight = random(WIDTH, dtype=torch.float32)
    total, normal = add_norm(hidden, update, weight, EPS, torch.bfloat16)
    assert (total.dtype, normal.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(total, hidden + update)
    torch.testing.assert_close(normal.float(), plain_norm(total, weight), atol=0.02, rtol=0.02)
    (total.sum() + normal.float().square().sum()).backward()
    assert [tensor.grad.dtype for tensor in (hidden, update, weight) if tensor.grad is not None] == [
        torch.float32, torch.bfloat16, torch.float32,
    ]  # fmt: skip


def test_swiglu() -> None:
    inputs = [random(TOKENS, WIDTH, seed=n) for n in range(2)]
    agree(swiglu, lambda gate, up: F.silu(gate) * up, inputs, atol=1e-12, rtol=1e-10)
    assert torch.autograd.gradcheck(swiglu, inputs)


def test_swiglu_keeps_its_inputs_as_they_are() -> None:
    gate, up = (random(TOKENS, WIDTH, seed=n) for n in range(2))
    before = gate.detach().clone(), up.detach().clone()
    swiglu(gate, up).sum().backward()
    assert torch.equal(gate, before[0])
    assert torch.equal(up, before[1])


def angles(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    turn = torch.linspace(0, 5, TOKENS * 3, dtype=dtype).view(TOKENS, 1, 3)
    return turn.cos(), turn.sin()


def plain_rotation(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As complex numbers: (a + ib)(cos + i sin), a the first half of a head and b the second."""
    turned = torch.complex(x[..., :3], x[..., 3:]) * torch.complex(cos, sin)
    return torch.cat([turned.real, turned.imag], -1)


def test_rotation() -> None:
    cos, sin = angles(torch.float64)
    x = random(TOKENS, 2, 6)
    agree(lambda x: rotate(x, cos, sin), lambda x: plain_rotation(x, cos, sin), [x], atol=1e-12, rtol=1e-10)
    assert torch.autograd.gradcheck(lambda x: rotate(x, cos, sin), [x])
    assert torch.equal(x, random(TOKENS, 2, 6))


def test_a_rotation_in_bfloat16_is_that_of_float32_rounded() -> None:
    """The angles are float32: rounded to bfloat16, positions beyond 256 could not be told apart."""
    cos, sin = angles(torch.float32)
    x = random(TOKENS, 2, 6, dtype=torch.bfloat16, grad=False)
    found = rotate(x, cos, sin)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), plain_rotation(x.float(), cos, sin), atol=0.02, rtol=0.01)


def plain_low_rank(x: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return F.linear(x, weight) + 1.7 * F.linear(F.linear(x, a), b)


def low_rank_inputs(weight: torch.dtype, adapter: torch.dtype, x_grad: bool = True) -> list[Tensor]:
    return [
        random(TOKENS, WIDTH, dtype=weight, grad=x_grad),
        random(5, WIDTH, dtype=weight, grad=False),
        random(3, WIDTH, dtype=adapter),
        random(5, 3, dtype=adapter),
    ]


@pytest.mark.parametrize("x_grad", [True, False], ids=["inside", "first layer"])
def test_low_rank_layers(x_grad: bool) -> None:
    inputs = low_rank_inputs(torch.float64, torch.float64, x_grad)
    agree(lambda *given: low_rank(*given, 1.7), plain_low_rank, inputs, atol=1e-12, rtol=1e-10)
    assert torch.autograd.gradcheck(lambda *given: low_rank(*given, 1.7), inputs)


def test_low_rank_layers_of_float32_adapters_on_bfloat16_products() -> None:
    inputs = low_rank_inputs(torch.bfloat16, torch.float32)
    out = low_rank(*inputs, 1.7)
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    exact = [tensor.detach().float().requires_grad_() for tensor in inputs]
    plain_low_rank(*exact).square().sum().backward()
    for tensor, other in zip(inputs, exact, strict=True):
        if tensor.requires_grad:
            assert tensor.grad is not None
            assert tensor.grad.dtype == tensor.dtype
            assert (tensor.grad.float() - other.grad).norm() < 0.05 * other.grad.norm()
