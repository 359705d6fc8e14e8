"""How losses, weights, divergences, likelihood terms and users' functions come together."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from stages.core.losses.config import TRAITS
from stages.core.losses.functions import LOSSES, LossInput
from stages.core.losses.objective import Objective, Outcome
from stages.core.tokens.pair import EncodedPair
from stages.train.config import TrainConfig
from tests.unit.test_losses import column, half, inputs, random_inputs, reference_is_policy

DOCUMENT = Path(__file__).parents[2] / "docs" / "losses.md"


def pairs(count: int, chosen_tokens: int = 4) -> list[EncodedPair]:
    return [EncodedPair(f"pair-{i}", [1], list(range(chosen_tokens)), [3]) for i in range(count)]


def outcome(x: LossInput, **config: Any) -> Outcome:
    return Objective(TrainConfig(**{"beta": 0.5, **config}))(x, pairs(len(x.chosen)))


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's module, ``objective_own``, in an importable folder."""
    (tmp_path / "objective_own.py").write_text(
        "import torch\n"
        "def loss(x, beta, factor=1.0): return factor * beta * (x.rejected - x.chosen)\n"
        "def detached(x, beta): return (x.rejected - x.chosen).detach()\n"
        "def mean(x, beta): return x.chosen.mean()\n"
        "def double(x, rewards, pairs): return x.chosen.double()\n"
        "def number(x, rewards, pairs): return 1.0\n"
        "def nan(x, rewards, pairs): return torch.where(torch.arange(len(pairs)) == 1, torch.nan, x.chosen)\n"
        "def ids(x, rewards, pairs): return torch.tensor([float(p.pair_id[5:]) for p in pairs], dtype=x.chosen.dtype)\n"
        "def reward(x, rewards, pairs, sign=1): return sign * rewards.chosen + 0 * rewards.rejected\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_one_loss_is_that_loss_with_its_options(name: str) -> None:
    x = random_inputs()
    found = outcome(x, loss=name)
    torch.testing.assert_close(found.losses, LOSSES[name](x, 0.5))
    assert found.parts == {}


def test_options_reach_the_loss() -> None:
    x = random_inputs()
    found = outcome(x, loss={"use": "simpo", "gamma": 1.5, "label_smoothing": 0.1})
    torch.testing.assert_close(found.losses, LOSSES["simpo"](x, 0.5, gamma=1.5, label_smoothing=0.1))


def test_several_losses_add_up_by_their_weights_and_are_told_apart_in_the_log() -> None:
    """Pair A: 2 * 0.126928 + 0.5 * 3.474077 + 0.126928."""
    losses = [{"use": "sigmoid", "weight": 2}, {"use": "cpo", "weight": 0.5}, "sigmoid"]
    found = outcome(inputs(), loss=losses)
    assert found.losses.item() == pytest.approx(2.117823, abs=3e-6)
    by_name = {name: value.item() for name, value in found.parts.items()}
    expected = {"loss/sigmoid": 0.126928, "loss/cpo": 3.474077, "loss/sigmoid_2": 0.126928}
    assert by_name == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(
    ("config", "rewards"),
    [
        ({}, (1.0, -1.0)),
        ({"loss": "ipo"}, (0.25, -0.5)),  # 0.5 * 2/4, 0.5 * -2/2
        ({"loss": "cpo"}, (-5.0, -4.5)),
        ({"loss": "simpo"}, (-1.25, -2.25)),  # 0.5 * -10/4, 0.5 * -9/2
        ({"loss": ["simpo", "sigmoid"]}, (-1.25, -2.25)),
        ({"length_normalise": True}, (0.25, -0.5)),
        ({"divergence": "forward_kl"}, (0.5 * (1 - math.exp(-2)), 0.5 * (1 - math.exp(2)))),
    ],
)
def test_rewards_are_beta_times_what_the_first_loss_compares(
    config: dict[str, Any], rewards: tuple[float, float]
) -> None:
    found = outcome(inputs(), **config)
    assert (found.chosen_reward.item(), found.rejected_reward.item()) == pytest.approx(rewards)


def test_everything_but_the_losses_is_detached() -> None:
    x = random_inputs()
    x.chosen.requires_grad_()
    found = outcome(x, loss=["sigmoid", "hinge"], sft_weight=1.0)
    assert found.losses.requires_grad
    assert set(found.parts) == {"loss/sigmoid", "loss/hinge", "sft"}
    assert not any(value.requires_grad for value in (found.chosen_reward, found.rejected_reward, *found.parts.values()))


def test_length_normalisation_divides_each_log_ratio_by_its_tokens() -> None:
    """Pair A: z = 0.5 * (2/4 + 2/2) = 0.75, ln(1 + e^-0.75) = 0.386871."""
    assert outcome(inputs(), length_normalise=True).losses.item() == pytest.approx(0.386871, abs=2e-6)


@pytest.mark.parametrize(
    ("divergence", "chosen", "rejected"),
    [
        ("forward_kl", 1 - math.exp(-2), 1 - math.exp(2)),
        ("js", math.log(2 * math.exp(2) / (1 + math.exp(2))), math.log(2 * math.exp(-2) / (1 + math.exp(-2)))),
        ({"use": "alpha", "alpha": 0.25}, 4 * (1 - math.exp(-0.5)), 4 * (1 - math.exp(0.5))),
    ],
)
def test_a_divergence_replaces_the_log_ratio_by_its_derivative(divergence: Any, chosen: float, rejected: float) -> None:
    """Pair A has log-ratios 2 and -2."""
    found = outcome(inputs(), divergence=divergence)
    assert found.chosen_reward.item() == pytest.approx(0.5 * chosen)
    assert found.rejected_reward.item() == pytest.approx(0.5 * rejected)
    assert found.losses.item() == pytest.approx(math.log(1 + math.exp(-0.5 * (chosen - rejected))))


@pytest.mark.parametrize(("alpha", "limit"), [(1e-6, "reverse_kl"), (1 - 1e-6, "forward_kl")])
def test_the_alpha_divergence_lies_between_reverse_and_forward_kl(alpha: float, limit: str) -> None:
    x = random_inputs()
    found = outcome(x, divergence={"use": "alpha", "alpha": alpha}).losses
    torch.testing.assert_close(found, outcome(x, divergence=limit).losses, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("divergence", ["forward_kl", "js", "alpha"])
def test_every_divergence_is_zero_and_finite_where_it_should_be(divergence: str) -> None:
    x = reference_is_policy(random_inputs())
    found = outcome(x, divergence=divergence)
    torch.testing.assert_close(found.losses, torch.full_like(found.losses, math.log(2)))
    far = inputs(chosen=[-1e4, 0], rejected=[0, -1e4], ref_chosen=[0], ref_rejected=[0])
    far = replace(far, chosen=far.chosen.float().requires_grad_(), rejected=far.rejected.float().requires_grad_())
    losses = outcome(far, divergence=divergence).losses
    gradients = torch.autograd.grad(losses.sum(), [far.chosen, far.rejected])
    assert all(value.isfinite().all() for value in (losses, *gradients))
    assert gradients[0][0] < 0  # a chosen response that is all but ruled out is still pushed up


@pytest.mark.parametrize("divergence", ["forward_kl", "js", "alpha"])
def test_gradients_through_a_divergence_equal_finite_differences(divergence: str) -> None:
    x = random_inputs()

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        changed = replace(x, chosen=chosen, rejected=rejected)
        return outcome(changed, divergence=divergence, length_normalise=True, sft_weight=0.5).losses

    assert torch.autograd.gradcheck(loss, (x.chosen.clone().requires_grad_(), x.rejected.clone().requires_grad_()))


def test_the_likelihood_of_the_preferred_response_is_added() -> None:
    """Pair A: 10/4 = 2.5 with p = 1; with p = 0.75, 0.75 * 2.5 + 0.25 * 4.5 = 3."""
    found = outcome(inputs(probability=[1, 0.75]), sft_weight=2)
    assert found.parts["sft"].tolist() == [2.5, 3]
    assert found.losses.tolist() == pytest.approx([0.126928 + 5, 0.626928 + 6], abs=2e-6)


def test_wpo_weights_the_losses_and_nothing_else() -> None:
    """exp(-0.5 - 0.25) = 0.472367; the likelihood term keeps its weight."""
    x = replace(inputs(), chosen_confidence=column([-0.5]), rejected_confidence=column([-0.25]))
    found = outcome(x, wpo=True, sft_weight=1)
    assert found.parts["wpo_weight"].item() == pytest.approx(0.472367, abs=1e-6)
    assert found.losses.item() == pytest.approx(0.472367 * 0.126928 + 2.5, abs=1e-6)


def test_wpo_has_no_gradient_of_its_own_and_a_missing_response_counts_one() -> None:
    x = replace(half(inputs(), "chosen"), chosen_confidence=column([-0.5]), rejected_confidence=column([-9.0]))
    x.chosen.requires_grad_()
    x.chosen_confidence.requires_grad_()
    found = outcome(x, loss="bco", wpo=True)
    assert found.parts["wpo_weight"].item() == pytest.approx(math.exp(-0.5))
    assert torch.autograd.grad(found.losses.sum(), [x.chosen_confidence], allow_unused=True) == (None,)


def test_wpo_says_that_it_needs_the_confidences() -> None:
    with pytest.raises(ValueError, match="chosen_confidence"):
        outcome(inputs(), wpo=True)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_what_a_loss_needs_is_known(name: str) -> None:
    objective, has = Objective(TrainConfig(loss=name)), TRAITS[name]
    assert objective.needs_reference == has.reference
    assert objective.needs_kl == (name == "kto")
    assert objective.coupled == (name in ("aot", "bco"))
    assert objective.pairwise == (name not in ("kto", "bco"))
    assert not objective.needs_confidence


def test_a_sum_needs_what_any_of_its_parts_needs() -> None:
    objective = Objective(TrainConfig(loss=["cpo", "kto", "bco"], wpo=True))
    assert objective.needs_reference
    assert objective.needs_kl
    assert objective.coupled
    assert objective.pairwise
    assert objective.needs_confidence
    assert not Objective(TrainConfig(loss=["simpo", "cpo"])).needs_reference
    assert not Objective(TrainConfig(loss=["kto", "bco"])).pairwise


def test_settings_that_cannot_work_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"length_normalise cannot be combined with the loss simpo"):
        Objective(TrainConfig(loss="simpo", length_normalise=True))


def test_an_objective_holds_no_state() -> None:
    objective, x = Objective(TrainConfig(loss="bco")), random_inputs()
    first = objective(x, pairs(12)).losses
    objective(replace(x, chosen=x.chosen - 5), pairs(12))
    assert torch.equal(objective(x, pairs(12)).losses, first)


def test_a_users_loss_is_called_like_the_built_in_ones(own: Path) -> None:
    config = {"use": "objective_own:loss", "options": {"factor": 3}, "weight": 0.5}
    found = outcome(inputs(), loss=config)
    assert found.losses.item() == pytest.approx(0.5 * 3 * 0.5 * (-9 + 10))
    assert Objective(TrainConfig(loss=config)).needs_reference
    assert outcome(inputs(), loss=["sigmoid", "objective_own:loss"]).parts["loss/loss"].item() == 0.5


def test_constraints_are_added_with_their_weight_and_logged_without(own: Path) -> None:
    """Pair A: the reward is 1, so 0.126928 + 0.25 * 1 - 2 * 1 + ids."""
    constraints = [
        {"use": "objective_own:reward", "weight": 0.25},
        {"use": "objective_own:reward", "options": {"sign": -1}, "weight": 2},
        {"use": "objective_own:ids"},
    ]
    found = outcome(inputs(chosen=[-10, -10]), constraints=constraints)
    assert found.losses.tolist() == pytest.approx([0.126928 - 1.75, 0.126928 - 0.75], abs=2e-6)
    assert {name: value.tolist() for name, value in found.parts.items()} == {
        "constraint/reward": [1, 1], "constraint/reward_2": [-1, -1], "constraint/ids": [0, 1],
    }  # fmt: skip


def test_a_constraint_on_rewards_is_trained_on(own: Path) -> None:
    x = inputs()
    x.chosen.requires_grad_()
    found = outcome(x, loss="cpo", constraints=[{"use": "objective_own:reward", "weight": 10}])
    (gradient,) = torch.autograd.grad(found.losses.sum(), [x.chosen])
    (without,) = torch.autograd.grad(outcome(x, loss="cpo").losses.sum(), [x.chosen])
    assert (gradient - without).item() == pytest.approx(10 * 0.5)


def test_a_constraint_may_look_at_the_reference(own: Path) -> None:
    config = TrainConfig(loss="simpo", constraints=[{"use": "objective_own:reward"}])
    assert Objective(config).needs_reference


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"loss": "objective_own:mean"}, r"objective_own:mean returned a tensor of torch.float64 with shape \[\]"),
        ({"loss": "objective_own:detached"}, "objective_own:detached returned a loss without gradient"),
        ({"constraints": [{"use": "objective_own:number"}]}, "objective_own:number returned a float; expected"),
        ({"constraints": [{"use": "objective_own:nan"}]}, "objective_own:nan returned nan for the pair pair-1"),
    ],
)
def test_what_a_users_function_must_not_return(own: Path, config: dict[str, Any], message: str) -> None:
    x = random_inputs()
    x.chosen.requires_grad_()
    with pytest.raises(ValueError, match=message):
        outcome(x, **config)


def test_another_type_is_refused(own: Path) -> None:
    x = random_inputs()
    single = replace(x, **{name: getattr(x, name).float() for name in ("chosen", "rejected")})
    with pytest.raises(ValueError, match=r"torch\.float64.*expected a tensor of torch\.float32"):
        outcome(single, constraints=[{"use": "objective_own:double"}])


@pytest.mark.parametrize(("use", "error"), [("objective_own:nothing", ImportError), ("objective_none:f", ImportError)])
def test_a_function_that_does_not_exist_is_an_import_error(own: Path, use: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        Objective(TrainConfig(loss=use))


def test_the_documents_own_loss_and_constraints_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pair A is apart by just the margin 2, so its loss is 0; its reward 1 is above 0, its 4 tokens are within 200."""
    text = DOCUMENT.read_text(encoding="utf-8")
    code, spec = (re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)[-1] for kind in ("python", "yaml"))
    (tmp_path / "my_losses.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    config = TrainConfig(**{"beta": 0.5, **yaml.safe_load(spec)["train"]})
    found = Objective(config)(inputs(), pairs(1))
    assert found.losses.item() == pytest.approx(0)
    assert set(found.parts) == {"constraint/keep_chosen_likely", "constraint/short"}
    x = inputs(chosen=[-13], rejected=[-9])
    x.chosen.requires_grad_()
    found = Objective(config)(x, pairs(1, chosen_tokens=201))  # rewards -0.5 and -1: (2 - 0.5)^2 + 0.1 * 0.5 - 13/4
    assert found.losses.item() == pytest.approx(2.25 + 0.05 - 3.25)
    assert found.losses.requires_grad


def test_the_documents_table_names_every_loss_with_its_traits() -> None:
    rows = re.findall(r"^\| `(\w+)` \|(?:[^|]|\\\|)*\|(.*)$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    table = {name: [cell.strip() for cell in re.split(r"(?<!\\)\|", rest)[-5:-1]] for name, rest in rows}
    assert list(table) == list(TRAITS)
    for name, (_, reference, unpaired, coupled) in table.items():
        has = TRAITS[name]
        said = tuple(cell.split()[0] == "yes" for cell in (reference, unpaired, coupled))
        assert said == (has.reference, has.unpaired, has.coupled), name
