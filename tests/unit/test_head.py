"""The fused head against autograd through all logits at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.core.forward import head
from stages.core.forward.head import FusedHead, exponentials
from stages.core.forward.packing import Batch, collate
from stages.core.tokens.pair import EncodedPair
from tests.memory import encoded, random_pairs

WIDTH, VOCABULARY = 12, 259


@pytest.fixture(params=[1024, 40, 16, 7, 1], ids="chunks of {}".format)
def rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """At 16 and below, single pairs are split; at 40 some share a chunk."""
    monkeypatch.setattr(head, "HEAD_ROWS", request.param)
    monkeypatch.setattr(head, "_SLICE", 5)
    return int(request.param)


def pairs() -> list[EncodedPair]:
    """Of many lengths, some with one response."""
    made = random_pairs(8, seed=5, longest=24)
    made[1] = replace(made[1], rejected_ids=[])
    made[3] = replace(made[3], chosen_ids=[])
    return made


def inputs(batch: Batch, trained: bool = True, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(len(batch.rows), WIDTH).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH).to(dtype).requires_grad_(trained)
    return hidden, weight


def plain(hidden: Tensor, weight: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """By definition: sums of log softmax at the targets, and means of log p(token) - log sum_v p(v)^2."""
    logged = (hidden.double() @ weight.double().t()).log_softmax(-1)
    tokens = logged.gather(1, batch.targets[:, None])[:, 0]
    confident = tokens - logged.exp().square().sum(-1).log()
    sums = torch.zeros(2 * batch.pairs, dtype=torch.float64).index_add(0, batch.sequences, tokens)
    totals = torch.zeros(2 * batch.pairs, dtype=torch.float64).index_add(0, batch.sequences, confident)
    return sums, totals / batch.tokens_of().clamp(min=1)


def dpo(logprobs: Tensor, confidences: Tensor) -> Tensor:
    """A loss of a few pairs, which uses all it is given: its slope differs from pair to pair."""
    weights = 1 + confidences.detach().view(-1, 2).sum(1)
    ratios = logprobs.view(-1, 2)
    return -(weights * torch.nn.functional.logsigmoid(0.05 * (ratios[:, 0] - ratios[:, 1]))).sum()


def weigh(first: int, last: int, logprobs: Tensor, confidences: Tensor) -> Tensor:
    assert logprobs.shape == confidences.shape == (2 * (last - first),)
    with torch.enable_grad():
        leaf = logprobs.detach().clone().requires_grad_()
        return torch.autograd.grad(dpo(leaf, confidences), leaf)[0]


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize("confident", [True, False])
def test_values_and_gradients_are_those_of_full_logits(trained: bool, confident: bool, rows: int) -> None:
    batch = collate(pairs(), "shared")
    hidden, weight = inputs(batch, trained)
    handle, logprobs, confidences = FusedHead.apply(hidden, weight, batch, weigh, confident)
    expected, certain = plain(hidden, weight, batch)
    torch.testing.assert_close(logprobs.double(), expected, atol=1e-3, rtol=1e-5)
    if confident:
        torch.testing.assert_close(confidences.double(), certain, atol=1e-4, rtol=1e-4)
        assert certain.abs().max() > 0.1
    else:
        assert confidences.eq(0).all()
    handle.backward()
    own = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    dpo(expected, certain if confident else torch.zeros_like(certain)).backward()
    for found, tensor in zip(own, (hidden, weight), strict=True):
        assert (found is None) == (tensor.grad is None) == (not tensor.requires_grad)
        if found is not None:
            assert tensor.grad is not None
            assert tensor.grad.norm() > 0.1
            torch.testing.assert_close(found, tensor.grad, atol=1e-4, rtol=1e-4)


def test_values_are_the_same_without_a_gradient(rows: int) -> None:
    batch = collate(pairs(), "shared")
    hidden, weight = inputs(batch)
    _, expected, certain = FusedHead.apply(hidden, weight, batch, weigh, True)
    handle, logprobs, confidences = FusedHead.apply(hidden, weight, batch, None, True)
    assert torch.equal(logprobs, expected)
    assert torch.equal(confidences, certain)
    handle.backward()
    assert hidden.grad is None or hidden.grad.eq(0).all()


def test_the_gradient_is_scaled_by_what_comes_from_behind(rows: int) -> None:
    batch = collate(pairs(), "shared")

    def run(factor: float) -> tuple[Any, Any]:
        hidden, weight = inputs(batch)
        (factor * FusedHead.apply(hidden, weight, batch, weigh, False)[0]).backward()
        return hidden.grad, weight.grad

    for once, thrice in zip(run(1.0), run(3.0), strict=True):
        torch.testing.assert_close(3 * once, thrice)


def test_every_pair_is_asked_for_once_and_in_order(rows: int) -> None:
    batch = collate(pairs(), "shared")
    asked = []

    def record(first: int, last: int, logprobs: Tensor, confidences: Tensor) -> Tensor:
        asked.append((first, last))
        return torch.zeros_like(logprobs)

    handle, *_ = FusedHead.apply(*inputs(batch), batch, record, False)
    assert [place for first, last in asked for place in range(first, last)] == list(range(batch.pairs))
    counts = [batch.bounds[last] - batch.bounds[first] for first, last in asked]
    assert all(count <= rows or last - first == 1 for count, (first, last) in zip(counts, asked, strict=True))
    handle.backward()


@pytest.mark.parametrize("size", [1, 3])
def test_in_bfloat16_a_pair_has_the_same_bits_in_any_company(size: int, rows: int) -> None:
    """Values and gradients by the hidden states."""
    items = pairs()
    batch = collate(items, "shared")
    hidden, weight = inputs(batch, dtype=torch.bfloat16)
    handle, logprobs, confidences = FusedHead.apply(hidden, weight, batch, weigh, True)
    handle.backward()
    for start in range(0, len(items), size):
        part = collate(items[start : start + size], "shared")
        own = slice(batch.bounds[start], batch.bounds[min(start + size, len(items))])
        alone = hidden.detach()[own].clone().requires_grad_()
        handle, sums, means = FusedHead.apply(alone, weight, part, weigh, True)
        handle.backward()
        where = slice(2 * start, 2 * (start + size))
        assert torch.equal(sums, logprobs[where])
        assert torch.equal(means, confidences[where])
        assert hidden.grad is not None
        assert torch.equal(alone.grad, hidden.grad[own])


def test_in_bfloat16_gradients_are_near_to_float32(rows: int) -> None:
    batch = collate(pairs(), "shared")
    hidden, weight = inputs(batch, dtype=torch.bfloat16)
    handle, logprobs, _ = FusedHead.apply(hidden, weight, batch, weigh, False)
    handle.backward()
    exact = [tensor.detach().float().requires_grad_() for tensor in (hidden, weight)]
    expected, certain = plain(*exact, batch)
    torch.testing.assert_close(logprobs.double(), expected, atol=0.1, rtol=0.01)
    dpo(expected, torch.zeros_like(certain)).backward()
    for tensor, other in zip((hidden, weight), exact, strict=True):
        assert tensor.grad is not None
        assert tensor.grad.dtype == torch.bfloat16
        assert (tensor.grad.float() - other.grad).norm() < 0.02 * other.grad.norm()


def test_a_batch_of_which_nothing_counts_is_zero() -> None:
    batch = collate([encoded([1, 2], [], [])], "padded")
    hidden, weight = inputs(batch)
    handle, logprobs, confidences = FusedHead.apply(hidden, weight, batch, weigh, True)
    handle.backward()
    assert logprobs.tolist() == confidences.tolist() == [0, 0]
    assert weight.grad is not None
    assert weight.grad.eq(0).all()


def test_exponentials_by_hand() -> None:
    """Logits 0, ln 2, ln 5 and target 1, whose exact logit is ln 3: 3 of 1 + 3 + 5; the largest is turned to 1."""
    logits = torch.tensor([[1.0, 2.0, 5.0]]).log()
    logprobs, totals = exponentials(logits, torch.tensor([1]), torch.tensor([3.0]).log())
    torch.testing.assert_close(logprobs, torch.tensor([1 / 3]).log())
    torch.testing.assert_close(totals, torch.tensor([9 / 5]))
    torch.testing.assert_close(logits, torch.tensor([[1 / 5, 3 / 5, 1.0]]))


def test_a_sure_tokens_log_probability_is_near_zero_in_bfloat16() -> None:
    """100.4 is 100.5 in bfloat16; held against its own rounded value, the token would come out at -0.1."""
    logits = torch.tensor([[100.4, 0.0]]).bfloat16()
    logprobs, _ = exponentials(logits, torch.tensor([0]), torch.tensor([100.4]))
    assert logprobs.item() == 0


def test_logits_far_from_zero_do_not_overflow() -> None:
    logits = torch.tensor([[1e4, 0.0], [-1e4, -1e4]])
    logprobs, totals = exponentials(logits, torch.tensor([1, 0]), torch.tensor([0.0, -1e4]))
    torch.testing.assert_close(logprobs, torch.tensor([-1e4, -0.693147]))
    torch.testing.assert_close(totals, torch.tensor([1.0, 2.0]))
