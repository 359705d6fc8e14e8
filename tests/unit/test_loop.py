from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.catalog import TrainConfig
from stages.core.logprobs import ResponseLogprobs
from stages.core.loop import Worker, accumulate_gradients, learning_rate_factor, train_steps
from stages.core.metrics import SUMS
from tests import tiny
from tests.memory import MemoryData, encoded, random_pairs

METRICS = {
    "step", "steps", "epoch", "loss", "reward_accuracy", "reward_margin", "chosen_reward", "rejected_reward",
    "chosen_logp", "rejected_logp", "kl", "pairs", "tokens", "grad_norm", "learning_rate", "tokens_per_second",
    "seconds",
}  # fmt: skip


def fp32(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"precision": "fp32", "batch_size": 4, "learning_rate": 1e-3, **changes})


def data(pairs: int = 14) -> MemoryData:
    return MemoryData(random_pairs(pairs)).scored_by(tiny.model())


def train(
    config: TrainConfig, data: MemoryData, tokens: int = 10**6, optimizer: type[Any] = torch.optim.AdamW
) -> tuple[list[dict[str, float]], Tensor]:
    """Metrics of every step, and the trained weights as one vector."""
    model = ResponseLogprobs(tiny.model()).train()
    rows = train_steps(model, optimizer(model.parameters(), lr=1.0), data, config, Worker(micro_batch_tokens=tokens))
    return list(rows), flat(model)


def flat(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def gradient(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


class Replica(torch.nn.Module):
    """Stands where DistributedDataParallel stands, and counts the backward passes that would not communicate."""

    def __init__(self) -> None:
        super().__init__()
        self.module = ResponseLogprobs(tiny.model())
        self.quiet = 0

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        result: Tensor = self.module(ids, mask)
        return result

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        self.quiet += 1
        yield


@pytest.mark.parametrize("tokens", [64, 10**6])
def test_the_first_loss_is_ln_2_when_the_policy_is_the_reference(tokens: int) -> None:
    row = train(fp32(epochs=1), data(4), tokens)[0][0]
    assert row["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert row["kl"] == pytest.approx(0, abs=1e-4)
    assert row["reward_margin"] == pytest.approx(0, abs=1e-5)


def test_the_size_of_micro_batches_does_not_change_the_trajectory() -> None:
    subject, config = data(), fp32(epochs=4)
    small_rows, small = train(config, subject, tokens=64)
    large_rows, large = train(config, subject, tokens=10**6)
    assert len(small_rows) == len(large_rows) == 14
    for name in ("loss", "grad_norm", "chosen_logp", "rejected_logp"):
        ratios = [a[name] / b[name] - 1 for a, b in zip(small_rows, large_rows, strict=True)]
        assert max(map(abs, ratios)) < 1e-4, name
        assert abs(sum(ratios)) / len(ratios) < 3e-5, name
    start = flat(ResponseLogprobs(tiny.model()))
    assert (small - large).norm() < 1e-4 * large.norm()
    assert (small - large).norm() < 1e-2 * (large - start).norm()
    assert len({row["loss"] for row in large_rows}) == 14


@pytest.mark.parametrize("tokens", [64, 10**6])
@pytest.mark.parametrize(
    ("pairs", "batch_size", "step", "world"),
    [
        pytest.param(8, 8, 0, 2, id="even shares"),
        pytest.param(7, 7, 0, 2, id="one worker has a pair more"),
        pytest.param(10, 8, 1, 2, id="last, smaller batch"),
        pytest.param(9, 8, 1, 2, id="a batch smaller than the workers"),
        pytest.param(10, 8, 1, 4, id="two of four workers have nothing"),
    ],
)
def test_workers_together_have_the_gradient_of_one(
    pairs: int, batch_size: int, step: int, world: int, tokens: int
) -> None:
    """DistributedDataParallel leaves the mean of the workers' gradients; the sums are added up by ``all_sum``."""
    subject = MemoryData(random_pairs(pairs)).scored_by(tiny.model(seed=1))
    config = fp32(batch_size=batch_size, beta=0.02)
    alone = ResponseLogprobs(tiny.model())
    expected = accumulate_gradients(alone, subject, config, Worker(), step, 0)
    replicas = [Replica() for _ in range(world)]
    parts = [
        accumulate_gradients(replica, subject, config, Worker(rank, world, micro_batch_tokens=tokens), step, 0)
        for rank, replica in enumerate(replicas)
    ]
    torch.testing.assert_close(torch.stack(parts).sum(0), expected, rtol=1e-5, atol=1e-4)
    assert expected[SUMS.index("pairs")] == min(batch_size, pairs - step * batch_size)
    mean = torch.stack([gradient(replica) for replica in replicas]).mean(0)
    assert gradient(alone).norm() > 1e-3
    torch.testing.assert_close(mean, gradient(alone), rtol=1e-4, atol=1e-5 * float(gradient(alone).abs().max()))


def test_a_step_reports_the_sums_over_all_workers() -> None:
    """Rank 0 of two holds two of the four pairs; were there ten workers like it, their step would have 20 pairs."""
    model = Replica()
    worker = Worker(0, 2, all_sum=lambda value: 10 * value)
    row = next(train_steps(model, torch.optim.SGD(model.parameters(), lr=1.0), data(4), fp32(), worker))
    assert row["pairs"] == 20
    assert row["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_workers_communicate_once_a_step() -> None:
    """Rank 0 of two holds four of the eight pairs, here a micro-batch each; only the last one is exchanged."""
    replica = Replica()
    accumulate_gradients(replica, data(8), fp32(batch_size=8), Worker(0, 2, micro_batch_tokens=1), 0, 0)
    assert replica.quiet == 3


def test_the_gradient_is_that_of_the_mean_loss_over_the_pairs() -> None:
    subject = MemoryData(random_pairs(5)).scored_by(tiny.model(seed=1))
    config = fp32(batch_size=5, beta=0.02)
    model = ResponseLogprobs(tiny.model())
    accumulate_gradients(model, subject, config, Worker(micro_batch_tokens=1), 0, 0)
    whole = gradient(model)
    parts = []
    for item in range(5):
        single = MemoryData([subject.items[item]], subject.chosen[[item]], subject.rejected[[item]])
        model.zero_grad()
        accumulate_gradients(model, single, fp32(beta=0.02), Worker(), 0, 0)
        parts.append(gradient(model))
    torch.testing.assert_close(whole, torch.stack(parts).mean(0), rtol=1e-4, atol=1e-6)


def test_a_pair_preferred_with_probability_zero_is_a_pair_the_other_way_round() -> None:
    pair = random_pairs(1)[0]
    reverse = encoded(pair.prompt_ids, pair.rejected_ids, pair.chosen_ids)
    unsure = encoded(pair.prompt_ids, pair.chosen_ids, pair.rejected_ids, p=0.0)
    gradients = []
    for item in (unsure, reverse, pair):
        model = ResponseLogprobs(tiny.model())
        accumulate_gradients(model, MemoryData([item]).scored_by(tiny.model()), fp32(), Worker(), 0, 0)
        gradients.append(gradient(model))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradients[0], -gradients[2], rtol=1e-3, atol=1e-5)


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
    start = flat(ResponseLogprobs(tiny.model()))
    config = fp32(learning_rate=0.5, warmup=0.0, max_grad_norm=0.01)
    rows, end = train(config, data(4), optimizer=torch.optim.SGD)
    assert rows[0]["grad_norm"] > 0.1
    assert rows[0]["learning_rate"] == 0.5
    assert float((end - start).norm()) == pytest.approx(0.5 * 0.01, rel=1e-2)


def test_a_run_goes_on_at_any_step() -> None:
    subject, config = data(6), fp32(epochs=2)
    model = ResponseLogprobs(tiny.model())
    rows = train_steps(model, torch.optim.SGD(model.parameters(), lr=1.0), subject, config, Worker(), first_step=2)
    assert [row["step"] for row in rows] == [3]
    assert not list(train_steps(model, torch.optim.SGD(model.parameters(), lr=1.0), subject, config, Worker(), 3))


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
