"""Training step by step: the same trajectory however steps are cut up, its metrics, its end."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.core.forward.logprobs import ResponseLogprobs
from stages.core.forward.packing import Layout
from stages.train.config import TrainConfig
from stages.train.gradients import MicroBatchError
from stages.train.loop import NotFiniteError, learning_rate_factor, train_steps
from stages.train.worker import Worker
from tests import zoo
from tests.memory import MemoryData, random_pairs
from tests.unit import test_gradients as steps
from tests.workers import Group, Replica

METRICS = {
    "step", "steps", "epoch", "loss", "reward_accuracy", "reward_margin", "chosen_reward", "rejected_reward",
    "chosen_logp", "rejected_logp", "kl", "pairs", "tokens", "grad_norm", "learning_rate", "tokens_per_second",
    "seconds",
}  # fmt: skip
Rows = list[dict[str, float]]


def fp32(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"precision": "fp32", "batch_size": 4, "learning_rate": 1e-3, **changes})


def data(pairs: int = 14) -> MemoryData:
    return MemoryData(random_pairs(pairs)).scored_by(zoo.eager())


def scorer(layout: Layout = "shared") -> ResponseLogprobs:
    return ResponseLogprobs(zoo.eager(), layout, "fp32")


def sgd(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1.0)


def train(
    config: TrainConfig,
    data: MemoryData,
    tokens: int = 10**6,
    optimizer: type[Any] = torch.optim.AdamW,
    layout: Layout = "shared",
) -> tuple[Rows, Tensor]:
    """Metrics of every step, and the trained weights as one vector."""
    model = scorer(layout)
    worker = Worker(micro_batch_tokens=tokens)
    rows = train_steps(model, optimizer(model.parameters(), lr=1.0), data, config, worker, layout)
    return list(rows), flat(model)


def train_together(config: TrainConfig, data: MemoryData, world: int, tokens: int) -> list[tuple[Rows, Tensor]]:
    """The same by several workers, each with its share."""
    group = Group(world)
    replicas = [Replica(scorer(), group, rank) for rank in range(world)]

    def work(rank: int) -> tuple[Rows, Tensor]:
        model, worker = (
            replicas[rank],
            Worker(rank, world, micro_batch_tokens=tokens, all_sum=partial(group.all_sum, rank)),
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
        return list(train_steps(model, optimizer, data, config, worker, "shared")), flat(model)

    return group.run(work)


def flat(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("tokens", [64, 10**6])
@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
def test_the_first_loss_is_ln_2_when_the_policy_is_the_reference(layout: Layout, tokens: int) -> None:
    row = train(fp32(epochs=1), data(4), tokens, layout=layout)[0][0]
    assert row["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert row["kl"] == pytest.approx(0, abs=1e-4)
    assert row["reward_margin"] == pytest.approx(0, abs=1e-5)


TRAJECTORIES = {
    **{name: (options, False) for name, options in steps.LOSSES.items()},
    "kto, unpaired": ({"loss": "kto"}, True),
    "bco, unpaired": ({"loss": "bco"}, True),
}


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_how_a_step_is_cut_up_does_not_change_the_trajectory(name: str) -> None:
    """Twenty steps of AdamW in float32: micro-batches, layouts and workers change rounding only. Every epoch ends
    with a batch of two epochs' pairs, the last one with fewer."""
    options, unpaired = TRAJECTORIES[name]
    subject = steps.data(11, unpaired)
    config = fp32(**options, beta=0.05, epochs=7)
    expected, weights = train(config, subject)
    assert [row["pairs"] for row in expected] == [4] * 19 + [1]
    assert len({row["loss"] for row in expected}) == 20
    others = [train(config, subject, 60, layout="packed"), train(config, subject, 90, layout="padded")]
    others += train_together(config, subject, 2, 60)
    start = flat(scorer())
    assert (weights - start).norm() > 0.02 * start.norm()
    for rows, other in others:
        assert [row.keys() for row in rows] == [row.keys() for row in expected]
        for metric in expected[0].keys() - {"seconds", "tokens_per_second"}:
            largest = max(abs(row.get(metric, 0.0)) for row in expected)
            for row, mine in zip(expected, rows, strict=True):
                if metric not in row:  # no pair of that task in this step
                    continue
                # Means of rewards and log-ratios pass through zero; the others are held to their own size
                size = abs(row[metric]) if metric in ("loss", "grad_norm") else largest
                assert abs(row[metric] - mine[metric]) <= 1e-4 * size + 1e-7, (metric, row["step"])
        assert (other - weights).norm() < 1e-5 * weights.norm()
        assert (other - weights).norm() < 1e-3 * (weights - start).norm()


@pytest.mark.parametrize("name", ["sigmoid", "kto", "several, coupled"])
def test_a_step_is_that_of_the_objective_by_definition(name: str) -> None:
    subject, config = steps.data(5), fp32(**steps.LOSSES[name], beta=0.05, batch_size=5)
    row = train(config, subject)[0][0]
    loss, gradient = steps.by_definition(subject, config)
    assert row["loss"] == pytest.approx(loss, rel=1e-4)
    assert row["grad_norm"] == pytest.approx(float(gradient.norm()), rel=1e-4)


def test_no_gradient_is_left_for_the_next_step() -> None:
    model = scorer()
    next(train_steps(model, sgd(model), data(8), fp32(), Worker(), "shared"))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_step_reports_the_sums_over_all_workers() -> None:
    """Rank 0 of two holds two of the four pairs; were there ten workers like it, their step would have 20 pairs."""
    model = Replica(scorer(), Group(1), 0)
    worker = Worker(0, 2, all_sum=lambda value: 10 * value)
    row = next(train_steps(model, sgd(model), data(4), fp32(), worker, "shared"))
    assert row["pairs"] == 20
    assert row["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_training_lowers_the_loss_and_widens_the_margin() -> None:
    rows, _ = train(fp32(epochs=8, learning_rate=3e-3), data(8))
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert rows[-1]["reward_margin"] > rows[0]["reward_margin"] + 0.5
    assert rows[-1]["reward_accuracy"] == 1.0


def test_metrics_of_a_step() -> None:
    subject = data(6)
    rows, _ = train(fp32(epochs=2, learning_rate=2e-3), subject)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["pairs"] for row in rows] == [4, 4, 4]
    assert [row["epoch"] for row in rows] == pytest.approx([4 / 6, 8 / 6, 2])
    tokens = sum(2 * len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in subject.items)
    assert sum(row["tokens"] for row in rows) == 2 * tokens
    for row in rows:
        assert set(row) == METRICS
        assert row["steps"] == 3
        assert all(math.isfinite(value) for value in row.values())
        assert row["reward_margin"] == pytest.approx(row["chosen_reward"] - row["rejected_reward"], abs=1e-5)
        assert row["kl"] == pytest.approx((row["chosen_reward"] + row["rejected_reward"]) / 2 / 0.1, abs=1e-3)
        assert row["chosen_logp"] < 0
        assert row["rejected_logp"] < 0
        assert row["tokens_per_second"] > 0


def test_the_last_batch_holds_what_is_left() -> None:
    rows, _ = train(fp32(), data(6))
    assert [row["pairs"] for row in rows] == [4, 2]


def test_gradients_are_clipped_and_the_optimizer_follows_the_schedule() -> None:
    """Plain gradient descent moves the weights by learning rate * factor * clipped gradient."""
    start = flat(scorer())
    config = fp32(learning_rate=0.5, warmup=0.0, max_grad_norm=0.01)
    rows, end = train(config, data(4), optimizer=torch.optim.SGD)
    assert rows[0]["grad_norm"] > 0.1
    assert rows[0]["learning_rate"] == 0.5
    assert float((end - start).norm()) == pytest.approx(0.5 * 0.01, rel=1e-2)


def test_a_run_goes_on_at_any_step() -> None:
    subject, config = data(6), fp32(epochs=2)
    model = scorer()
    rows = train_steps(model, sgd(model), subject, config, Worker(), "shared", first_step=2)
    assert [row["step"] for row in rows] == [3]
    assert not list(train_steps(model, sgd(model), subject, config, Worker(), "shared", 3))


def test_parts_of_the_objective_are_among_the_metrics() -> None:
    config = fp32(loss=["sigmoid", "ipo"], sft_weight=0.5, wpo=True)
    row = train(config, data(4))[0][0]
    assert set(row) == METRICS | {"loss/sigmoid", "loss/ipo", "sft", "wpo_weight"}
    assert row["loss/sigmoid"] == pytest.approx(math.log(2), abs=1e-6)
    assert row["loss/ipo"] == pytest.approx(25, abs=1e-3)


def test_without_a_reference_there_is_no_divergence_from_it() -> None:
    row = train(fp32(loss="simpo"), MemoryData(random_pairs(4), torch.zeros(3, 4)))[0][0]
    assert set(row) == METRICS - {"kl"}


def broken(place: int) -> MemoryData:
    """Pairs of which one has a reference that is not a number."""
    subject = data(12)
    subject.logprobs[0, place] = math.nan
    return subject


def until_the_error(rows: Iterator[dict[str, float]], model: torch.nn.Module) -> tuple[NotFiniteError, list[Tensor]]:
    """The error, and the weights before every step and when it was raised."""
    weights = [flat(model)]
    with pytest.raises(NotFiniteError) as caught:
        weights.extend(flat(model) for _ in rows)
    return caught.value, [*weights, flat(model)]


@pytest.mark.parametrize("layout", ["shared", "padded"])
@pytest.mark.parametrize("loss", ["sigmoid", "aot"])
def test_a_loss_that_is_not_finite_ends_it_before_the_weights_are_touched(loss: str, layout: Layout) -> None:
    subject, model = broken(5), scorer(layout)
    rows = train_steps(model, sgd(model), subject, fp32(loss=loss, epochs=3), Worker(), layout)
    error, weights = until_the_error(rows, model)
    assert 1 <= error.step <= 3
    assert str(error) == f"the loss is not finite at step {error.step}"
    assert len(weights) == error.step + 1
    assert torch.equal(weights[-1], weights[-2])
    assert weights[-1].isfinite().all()
    assert error.pairs == (subject.items[5].pair_id,)


def test_a_gradient_that_is_not_finite_ends_it_too() -> None:
    model = scorer()
    next(model.parameters()).register_hook(lambda gradient: gradient * math.inf)
    error, weights = until_the_error(train_steps(model, sgd(model), data(8), fp32(), Worker(), "shared"), model)
    assert (str(error), error.step, error.pairs) == ("the gradient is not finite at step 1", 1, ())
    assert torch.equal(weights[0], weights[1])


def test_all_workers_stop_at_a_loss_that_is_not_finite_and_the_one_that_has_the_pair_names_it() -> None:
    subject, config, group = broken(5), fp32(batch_size=12), Group(2)
    replicas = [Replica(scorer(), group, rank) for rank in range(2)]

    def work(rank: int) -> NotFiniteError:
        worker = Worker(rank, 2, all_sum=partial(group.all_sum, rank))
        rows = train_steps(replicas[rank], sgd(replicas[rank]), subject, config, worker, "shared")
        return until_the_error(rows, replicas[rank])[0]

    assert sorted(error.pairs for error in group.run(work)) == [(), (subject.items[5].pair_id,)]


def test_pairs_that_do_not_fit_in_memory_are_named() -> None:
    model = steps.Crowded(steps.ERRORS["cuda"])
    with pytest.raises(MicroBatchError, match="out of memory in a micro-batch of"):
        list(train_steps(model, sgd(model), data(6), fp32(), Worker(), "shared"))


def test_data_that_cannot_be_read_fail_the_training_with_their_own_error() -> None:
    """Pairs are read ahead, in a thread."""
    subject = data(12)
    subject.items[7] = None  # type: ignore[call-overload]
    model = scorer()
    with pytest.raises(AttributeError, match="NoneType"):
        list(train_steps(model, sgd(model), subject, fp32(), Worker(), "shared"))


def test_a_training_that_is_given_up_leaves_no_thread_behind() -> None:
    import threading

    model, before = scorer(), threading.active_count()
    rows = train_steps(model, sgd(model), data(12), fp32(), Worker(), "shared")
    next(rows)
    rows.close()
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("schedule", "warmup", "factors"),
    [
        ("linear", 0.0, [1, 0.75, 0.5, 0.25]),
        ("linear", 0.5, [0.5, 1, 1, 0.5]),
        ("constant", 0.5, [0.5, 1, 1, 1]),
        ("cosine", 0.0, [1, 0.5 + 0.25 * math.sqrt(2), 0.5, 0.5 - 0.25 * math.sqrt(2)]),
        ("cosine", 0.5, [0.5, 1, 1, 0.5]),
        ("linear", 1.0, [0.25, 0.5, 0.75, 1]),
    ],
)
def test_learning_rate_factors_of_four_steps_by_hand(schedule: str, warmup: float, factors: list[float]) -> None:
    """Warm-up of half of four steps rises to 1/2 and 2/2; then decay starts at 1 and would end at 0 at step 4."""
    found = [learning_rate_factor(step, 4, warmup, schedule) for step in range(4)]
    assert found == pytest.approx(factors)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 37])
def test_a_learning_rate_is_never_zero_nor_above_the_set_one(schedule: str, steps: int) -> None:
    for warmup in (0.0, 0.1, 0.5, 1.0):
        assert all(0 < learning_rate_factor(step, steps, warmup, schedule) <= 1 for step in range(steps))
