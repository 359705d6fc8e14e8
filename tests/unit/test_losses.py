from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from stages.catalog import TrainConfig
from stages.core.losses import LOSSES, sigmoid

LN2 = math.log(2)


def tensors(*columns: list[float]) -> list[Tensor]:
    return [torch.tensor(column, dtype=torch.float64) for column in columns]


def random_inputs(pairs: int = 16) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = -20 * torch.rand(4, pairs, dtype=torch.float64, generator=generator)
    return values[0], values[1], values[2], values[3]


def test_every_loss_of_the_spec_exists_and_no_other() -> None:
    assert set(LOSSES) == set(get_args(TrainConfig.model_fields["loss"].annotation))


def test_sigmoid_values_worked_out_by_hand() -> None:
    """beta = 0.5.

    Pair 1, p = 1. Rewards: 0.5 * (-10 + 12) = 1 and 0.5 * (-9 + 7) = -1, so z = 2 and
        loss = -ln sigmoid(2) = ln(1 + e^-2) = 0.126928.
    Pair 2, p = 1. Rewards: 0.5 * (-6 + 4) = -1 and 0.5 * (-3 + 5) = 1, so z = -2 and
        loss = ln(1 + e^2) = 2.126928.
    Pair 3, p = 0.75, the log-probabilities of pair 1:
        loss = 0.75 * 0.126928 + 0.25 * 2.126928 = 0.626928.
    """
    chosen, rejected, ref_chosen, ref_rejected, probability = tensors(
        [-10, -6, -10], [-9, -3, -9], [-12, -4, -12], [-7, -5, -7], [1, 1, 0.75]
    )
    losses, chosen_reward, rejected_reward = sigmoid(chosen, rejected, ref_chosen, ref_rejected, probability, beta=0.5)
    assert losses.tolist() == pytest.approx([0.126928, 2.126928, 0.626928], abs=1e-6)
    assert chosen_reward.tolist() == [1, -1, 1]
    assert rejected_reward.tolist() == [-1, 1, -1]


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 1.0])
def test_gradient_equals_central_differences(p: float) -> None:
    chosen, rejected, ref_chosen, ref_rejected = random_inputs()
    probability = torch.full_like(chosen, p)
    chosen.requires_grad_()
    rejected.requires_grad_()

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return sigmoid(a, b, ref_chosen, ref_rejected, probability, 0.3)[0]

    found = torch.autograd.grad(loss(chosen, rejected).sum(), [chosen, rejected])
    h = 1e-5
    with torch.no_grad():
        by_chosen = (loss(chosen + h, rejected) - loss(chosen - h, rejected)) / (2 * h)
        by_rejected = (loss(chosen, rejected + h) - loss(chosen, rejected - h)) / (2 * h)
    torch.testing.assert_close(found[0], by_chosen, atol=1e-9, rtol=1e-6)
    torch.testing.assert_close(found[1], by_rejected, atol=1e-9, rtol=1e-6)
    assert by_chosen.abs().min() > 0


@pytest.mark.parametrize("p", [0.0, 0.25, 0.5, 1.0])
def test_policy_equal_to_reference_gives_ln_2(p: float) -> None:
    chosen, rejected, _, _ = random_inputs()
    losses, chosen_reward, rejected_reward = sigmoid(
        chosen, rejected, chosen, rejected, torch.full_like(chosen, p), 0.1
    )
    torch.testing.assert_close(losses, torch.full_like(losses, LN2))
    assert not chosen_reward.any()
    assert not rejected_reward.any()


def test_even_preference_is_symmetric_in_the_responses() -> None:
    chosen, rejected, ref_chosen, ref_rejected = random_inputs()
    half = torch.full_like(chosen, 0.5)
    forward = sigmoid(chosen, rejected, ref_chosen, ref_rejected, half, 0.2)[0]
    backward = sigmoid(rejected, chosen, ref_rejected, ref_chosen, half, 0.2)[0]
    torch.testing.assert_close(forward, backward)
    assert (forward >= LN2 - 1e-12).all()  # least where the two are equally likely


def test_preference_of_zero_equals_swapped_responses() -> None:
    chosen, rejected, ref_chosen, ref_rejected = random_inputs()
    one = torch.ones_like(chosen)
    unsure = sigmoid(chosen, rejected, ref_chosen, ref_rejected, 0 * one, 0.2)[0]
    swapped = sigmoid(rejected, chosen, ref_rejected, ref_chosen, one, 0.2)[0]
    torch.testing.assert_close(unsure, swapped)
    assert not torch.allclose(unsure, sigmoid(chosen, rejected, ref_chosen, ref_rejected, one, 0.2)[0])


def test_small_beta_tends_to_ln_2_with_slope_minus_half_the_margin() -> None:
    """-ln sigmoid(z) = ln 2 - z / 2 + O(z^2), and z = beta * margin."""
    chosen, rejected, ref_chosen, ref_rejected = random_inputs()
    margin = (chosen - ref_chosen) - (rejected - ref_rejected)
    beta = 1e-6
    losses = sigmoid(chosen, rejected, ref_chosen, ref_rejected, torch.ones_like(chosen), beta)[0]
    torch.testing.assert_close((losses - LN2) / beta, -margin / 2, atol=1e-3, rtol=1e-3)


def test_far_apart_responses_give_finite_losses_and_gradients() -> None:
    chosen, rejected, zero, one = tensors([-1e4, 0.0], [0.0, -1e4], [0.0, 0.0], [1.0, 1.0])
    chosen.requires_grad_()
    losses = sigmoid(chosen, rejected, zero, zero, one, 1.0)[0]
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([1e4, 0.0])
    assert chosen.grad is not None
    assert chosen.grad.tolist() == pytest.approx([-1.0, 0.0])


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_rewards_are_detached_and_losses_are_per_pair(name: str) -> None:
    chosen, rejected, ref_chosen, ref_rejected = (value.float() for value in random_inputs(5))
    chosen.requires_grad_()
    losses, chosen_reward, rejected_reward = LOSSES[name](
        chosen, rejected, ref_chosen, ref_rejected, torch.ones(5), 0.1
    )
    assert losses.shape == chosen_reward.shape == rejected_reward.shape == (5,)
    assert losses.dtype == chosen_reward.dtype == torch.float32
    assert losses.requires_grad
    assert not chosen_reward.requires_grad
    assert not rejected_reward.requires_grad
