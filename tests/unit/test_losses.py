"""Each loss against numbers worked out by hand, which stand in its docstring, and against what must hold for all."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.core.losses.config import TRAITS, own_options, traits
from stages.core.losses.functions import LOSSES, LossInput
from stages.core.losses.inputs import log1mexp
from stages.train.config import TrainConfig

LN2 = math.log(2)
NAMES = sorted(LOSSES)
PAIR_A: dict[str, list[float]] = {
    "chosen": [-10], "ref_chosen": [-12], "chosen_tokens": [4],
    "rejected": [-9], "ref_rejected": [-7], "rejected_tokens": [2],
    "probability": [1],
}  # fmt: skip
"""The example of the docstrings: with beta = 0.5 the rewards are 1 and -1."""


def column(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def inputs(kl: float | None = None, **columns: list[float]) -> LossInput:
    """Pair A with some columns replaced, as many rows as the longest column."""
    values = PAIR_A | columns
    rows = max(map(len, values.values()))
    tensors = {name: column(value if len(value) == rows else value * rows) for name, value in values.items()}
    return LossInput(**tensors, kl=None if kl is None else torch.tensor(kl, dtype=torch.float64))


def random_inputs(pairs: int = 12, p: float | None = None) -> LossInput:
    """Pairs of 1 to 9 tokens with log-probabilities to match."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 10, (2, pairs), generator=generator).double()
    logps = -tokens.repeat(2, 1) * (0.05 + 2 * torch.rand(4, pairs, dtype=torch.float64, generator=generator))
    drawn = torch.rand(pairs, dtype=torch.float64, generator=generator)
    probability = drawn if p is None else torch.full_like(drawn, p)
    return LossInput(logps[0], logps[1], logps[2], logps[3], tokens[0], tokens[1], probability, kl=column([0.3])[0])


def reference_is_policy(x: LossInput) -> LossInput:
    return replace(x, ref_chosen=x.chosen.detach(), ref_rejected=x.rejected.detach(), kl=torch.zeros_like(x.kl))


def options(name: str) -> dict[str, Any]:
    return own_options(TrainConfig(loss=name).loss[0])


def test_every_loss_of_the_spec_exists_and_no_other() -> None:
    assert set(LOSSES) == set(TRAITS)


@pytest.mark.parametrize("name", NAMES)
def test_the_spec_and_the_function_have_the_same_options_and_defaults(name: str) -> None:
    parameters = inspect.signature(LOSSES[name]).parameters
    assert list(parameters)[:2] == ["x", "beta"]
    assert {key: p.default for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY} == options(name)


@pytest.mark.parametrize(
    ("name", "beta", "own", "x", "by_hand"),
    [
        ("sigmoid", 0.5, {}, {"probability": [1, 0.75, 0]}, [0.126928, 0.626928, 2.126928]),
        ("sigmoid", 0.5, {"label_smoothing": 0.25}, {}, [0.626928]),
        ("robust", 0.5, {"label_smoothing": 0.1}, {}, [-0.123072]),
        ("robust", 0.5, {"label_smoothing": 0.0}, {}, [0.126928]),
        ("ipo", 0.5, {}, {}, [0.25]),
        ("hinge", 0.1, {}, {}, [0.6]),
        ("hinge", 0.5, {}, {}, [0]),
        ("kto", 0.5, {}, {"kl": 1}, [0.559966]),
        ("kto", 0.5, {"desirable_weight": 2.0, "undesirable_weight": 3.0}, {"kl": 1}, [1.302358]),
        ("kto", 0.5, {}, {"kl": -5}, [0.537883]),  # z0 is at least 0: s(-1) + s(-1)
        (
            "bco", 0.5, {},
            {"chosen": [-10, -6], "ref_chosen": [-12, -12], "rejected": [-9, -5], "ref_rejected": [-7, -7]},
            [0.820075, 0.820075],
        ),
        ("simpo", 0.5, {"gamma": 0.5}, {}, [0.474077]),
        (
            "orpo", 0.5, {},
            {"chosen": [4 * math.log(0.5)], "rejected": [2 * math.log(0.2)]},
            [0.804719],
        ),
        ("cpo", 0.5, {}, {}, [3.474077]),
        ("cpo", 0.5, {"alpha": 0.0}, {}, [0.974077]),
        ("apo_zero", 0.5, {}, {}, [0.537883]),
        ("apo_down", 0.5, {}, {}, [0.850262]),
        ("exo", 0.5, {"label_smoothing": 0.1}, {}, [0.001942]),
        ("nca", 0.5, {}, {}, [1.126523]),
        ("sppo", 0.5, {}, {}, [2]),
        ("discopop", 0.5, {"temperature": 1.0}, {}, [0.134333]),
        ("discopop", 0.5, {}, {}, [math.exp(-2)]),  # s(2 / 0.05) is 1
        (
            "aot", 0.5, {},
            {"chosen": [-10, -12], "rejected": [-9, -9], "ref_chosen": [-12, -6], "ref_rejected": [-7, -7]},
            [1.313262, 0.313262],
        ),
    ],
)  # fmt: skip
def test_values_worked_out_by_hand(
    name: str, beta: float, own: dict[str, float], x: dict[str, Any], by_hand: list[float]
) -> None:
    assert LOSSES[name](inputs(**x), beta, **own).tolist() == pytest.approx(by_hand, abs=2e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0, None])
def test_the_gradient_equals_finite_differences(name: str, p: float | None) -> None:
    x = random_inputs(p=p)
    if name == "bco":  # its shift is a constant by definition, which differences do not know
        x = replace(x, **{field: getattr(x, field)[:1] for field in PAIR_A})
        assert shift_free_gradient(x)
        return

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        return LOSSES[name](replace(x, chosen=chosen, rejected=rejected), 0.3, **options(name))

    arguments = (x.chosen.clone().requires_grad_(), x.rejected.clone().requires_grad_())
    assert torch.autograd.gradcheck(loss, arguments)
    gradients = torch.autograd.grad(loss(*arguments).sum(), arguments)
    assert all(bool(gradient.any()) for gradient in gradients)


def shift_free_gradient(x: LossInput) -> bool:
    """bco with the shift d held fixed: -beta s(d - r_w) by chosen and beta s(r_l - d) by rejected (weights by p)."""
    chosen, rejected = x.chosen.clone().requires_grad_(), x.rejected.clone().requires_grad_()
    value = LOSSES["bco"](replace(x, chosen=chosen, rejected=rejected), 0.3)
    found = torch.autograd.grad(value.sum(), [chosen, rejected])
    rewards = [0.3 * ratio for ratio in x.ratios]
    d, p = (rewards[0] + rewards[1]) / 2, x.probability
    by_hand = [
        0.3 * (p_up * -torch.sigmoid(d - r) + (1 - p_up) * torch.sigmoid(r - d))
        for r, p_up in zip(rewards, (p, 1 - p), strict=True)
    ]
    return all(torch.allclose(a, b) for a, b in zip(found, by_hand, strict=True))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sigmoid", LN2), ("robust", LN2), ("hinge", 1.0), ("kto", 1.0), ("bco", 2 * LN2), ("apo_zero", 1.0),
        ("apo_down", 1.0), ("nca", 2 * LN2), ("aot", LN2), ("ipo", 25.0), ("sppo", 50.0),
        ("discopop", (LN2 + 1) / 2), ("exo", -LN2 - math.log(1 - 1e-3) / 2 - math.log(1e-3) / 2),
    ],
)  # fmt: skip
@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_a_policy_equal_to_its_reference_has_a_known_loss(name: str, value: float, p: float) -> None:
    """With beta = 0.1, whatever the label: the two responses are alike to a loss that compares with the reference."""
    x = reference_is_policy(random_inputs(p=p))
    losses = LOSSES[name](x, 0.1, **options(name))
    torch.testing.assert_close(losses, torch.full_like(losses, value))


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"aot"}))
def test_an_even_preference_is_symmetric_in_the_responses(name: str) -> None:
    x = random_inputs(p=0.5)
    forward, backward = (LOSSES[name](y, 0.2, **options(name)) for y in (x, x.swapped()))
    torch.testing.assert_close(forward, backward)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"aot"}))
def test_a_preference_of_zero_equals_swapped_responses(name: str) -> None:
    certain = random_inputs(p=1.0)
    zero = replace(certain, probability=torch.zeros_like(certain.probability))
    swapped = replace(certain.swapped(), probability=certain.probability)
    ours = LOSSES[name](zero, 0.2, **options(name))
    torch.testing.assert_close(ours, LOSSES[name](swapped, 0.2, **options(name)))
    assert not torch.allclose(ours, LOSSES[name](certain, 0.2, **options(name)))


@pytest.mark.parametrize("name", [name for name in NAMES if "label_smoothing" in options(name)])
@pytest.mark.parametrize("p", [0.4, 1.0])
def test_label_smoothing_is_a_preference_that_is_less_sure(name: str, p: float) -> None:
    """0.2 makes 0.8 p + 0.2 (1 - p) of p; robust and exo mean something else by it."""
    x = random_inputs(p=p)
    smoothed = LOSSES[name](x, 0.2, label_smoothing=0.2)
    unsure = LOSSES[name](replace(x, probability=0.8 * x.probability + 0.2 * (1 - x.probability)), 0.2)
    assert torch.allclose(smoothed, unsure) == (name not in ("robust", "exo"))


def test_the_robust_loss_is_unbiased_under_flipped_labels() -> None:
    """Its mean over labels that are flipped in a share e of cases is the plain loss of the true labels."""
    x = random_inputs(p=1.0)
    noisy = replace(x, probability=torch.full_like(x.probability, 0.9))
    torch.testing.assert_close(LOSSES["robust"](noisy, 0.3, label_smoothing=0.1), LOSSES["sigmoid"](x, 0.3))


@pytest.mark.parametrize("name", ["sigmoid", "robust", "aot"])
def test_small_beta_tends_to_ln_2_with_slope_minus_half_the_margin(name: str) -> None:
    """-ln sigmoid(z) = ln 2 - z / 2 + O(z^2), and z = beta * margin; one pair, so that sorting changes nothing."""
    x = inputs()
    slope = (LOSSES[name](x, 1e-6) - LN2) / 1e-6
    factor = 1.25 if name == "robust" else 1  # 1 / (1 - 2 e)
    torch.testing.assert_close(slope, column([-4 / 2 * factor]), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["simpo", "cpo", "orpo"])
def test_losses_without_a_reference_do_not_look_at_it(name: str) -> None:
    x = random_inputs()
    other = replace(x, ref_chosen=x.ref_chosen - 3, ref_rejected=x.ref_rejected + 2)
    assert not traits(TrainConfig(loss=name).loss[0]).reference
    assert torch.equal(LOSSES[name](x, 0.3), LOSSES[name](other, 0.3))


@pytest.mark.parametrize("name", [name for name in NAMES if TRAITS[name].reference])
def test_losses_with_a_reference_look_at_it(name: str) -> None:
    x = random_inputs()
    other = replace(x, ref_chosen=x.ref_chosen - 3, ref_rejected=x.ref_rejected + 2)
    assert not torch.allclose(LOSSES[name](x, 0.3), LOSSES[name](other, 0.3))


@pytest.mark.parametrize("name", NAMES)
def test_only_coupled_losses_depend_on_the_other_pairs(name: str) -> None:
    x = random_inputs()
    first = replace(x, **{field: getattr(x, field)[:5] for field in PAIR_A})
    alone, among = LOSSES[name](first, 0.3), LOSSES[name](x, 0.3)[:5]
    same = torch.allclose(alone, among, rtol=1e-12, atol=1e-12)  # vector and scalar code may differ in the last bit
    assert same == (not TRAITS[name].coupled)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("beta", [0.01, 1.0, 10.0])
def test_extreme_values_give_finite_losses_and_gradients(name: str, p: float, beta: float) -> None:
    """float32, as in training: certain (0) and all but impossible (-1e4) responses on either side."""
    x = inputs(
        chosen=[-1e4, 0, 0, -1e4, -1e-7, -1e-7], rejected=[0, -1e4, 0, -1e4, -1e-7, -90], ref_chosen=[0],
        ref_rejected=[0], probability=[p], chosen_tokens=[3], rejected_tokens=[1], kl=0.0,
    )  # fmt: skip
    x = replace(x, **{field: getattr(x, field).float() for field in (*PAIR_A, "kl")})
    x.chosen.requires_grad_()
    x.rejected.requires_grad_()
    losses = LOSSES[name](x, beta, **options(name))
    assert losses.dtype == torch.float32
    for tensor in (losses, *torch.autograd.grad(losses.sum(), [x.chosen, x.rejected])):
        assert tensor.isfinite().all()


def test_far_apart_responses_are_pushed_with_full_strength() -> None:
    x = inputs(chosen=[-1e4, 0], rejected=[0, -1e4], ref_chosen=[0], ref_rejected=[0])
    x.chosen.requires_grad_()
    losses = LOSSES["sigmoid"](x, 1.0)
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([1e4, 0.0])
    assert x.chosen.grad is not None
    assert x.chosen.grad.tolist() == pytest.approx([-1.0, 0.0])


def half(x: LossInput, side: str) -> LossInput:
    """The rows with only one of their responses."""
    gone = "rejected" if side == "chosen" else "chosen"
    return replace(x, **{name: torch.zeros_like(x.chosen) for name in (gone, f"ref_{gone}", f"{gone}_tokens")})


@pytest.mark.parametrize("name", [name for name in NAMES if TRAITS[name].unpaired])
@pytest.mark.parametrize("p", [1.0, 0.3])
def test_a_pair_costs_what_its_responses_cost_alone(name: str, p: float) -> None:
    """For bco the pairs and the halves have to be given together, so that they share the mean reward."""
    x = random_inputs(p=p)
    sides = [half(x, "chosen"), half(x, "rejected")]
    stacked = replace(x, **{field: torch.cat([getattr(side, field) for side in sides]) for field in PAIR_A})
    halves = LOSSES[name](stacked, 0.3).view(2, -1).sum(0)
    torch.testing.assert_close(LOSSES[name](x, 0.3), halves)


@pytest.mark.parametrize("name", [name for name in NAMES if TRAITS[name].unpaired])
def test_a_missing_response_gets_no_gradient(name: str) -> None:
    x = half(random_inputs(), "chosen")
    x.chosen.requires_grad_()
    x.rejected.requires_grad_()
    gradients = torch.autograd.grad(LOSSES[name](x, 0.3).sum(), [x.chosen, x.rejected])
    assert gradients[0].all()
    assert not gradients[1].any()


def test_a_rejected_response_alone_is_pushed_down() -> None:
    x = half(random_inputs(p=1.0), "rejected")
    x.rejected.requires_grad_()
    for name in ("kto", "bco"):
        (gradient,) = torch.autograd.grad(LOSSES[name](x, 0.3).sum(), [x.rejected])
        assert (gradient > 0).all()


def test_kto_says_that_it_needs_the_divergence() -> None:
    with pytest.raises(ValueError, match=r"LossInput\.kl"):
        LOSSES["kto"](inputs(), 0.1)


def test_sppo_with_a_soft_preference_has_the_gradient_of_the_soft_form() -> None:
    """Their soft form: (u_w - (p - 1/2) / beta)^2 + (u_l + (p - 1/2) / beta)^2."""

    def soft(x: LossInput, beta: float) -> Tensor:
        shift = (x.probability - 0.5) / beta
        return (x.ratios[0] - shift) ** 2 + (x.ratios[1] + shift) ** 2

    def gradients(loss: Callable[[LossInput, float], Tensor]) -> list[Tensor]:
        x = random_inputs()
        leaves = [x.chosen.requires_grad_(), x.rejected.requires_grad_()]
        return list(torch.autograd.grad(loss(x, 0.2).sum(), leaves))

    torch.testing.assert_close(gradients(LOSSES["sppo"]), gradients(soft))


def test_aot_leaves_each_pair_its_own_loss_and_probability() -> None:
    """The order in which pairs are given changes nothing but the order of the losses."""
    x = random_inputs()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    moved = replace(x, **{field: getattr(x, field)[order] for field in PAIR_A})
    torch.testing.assert_close(LOSSES["aot"](moved, 0.3), LOSSES["aot"](x, 0.3)[order])


@pytest.mark.parametrize("value", [-1e-20, -1e-9, -1e-3, -0.5, -0.6931, -0.6932, -1.0, -30.0, -800.0])
def test_log1mexp_is_exact_at_both_ends(value: float) -> None:
    """Small x: log(1 - e^-x) = log x - x/2; large x: -e^-x."""
    x = -value
    exact = math.log(x) - x / 2 if x < 1e-2 else -math.exp(-x) if x > 20 else math.log(1 - math.exp(-x))
    tensor = column([value]).requires_grad_()
    result = log1mexp(tensor)
    assert result.item() == pytest.approx(exact, rel=1e-6)
    (gradient,) = torch.autograd.grad(result.sum(), [tensor])
    assert gradient.item() == pytest.approx(math.exp(-x) / math.expm1(-x))
