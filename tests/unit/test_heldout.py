"""How held-out pairs are measured, from log-probabilities worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from stages.base import StageError, Summary
from stages.catalog import HELDOUT
from stages.core.records import LOGPROBS, SHARD
from stages.core.tokens.pair import EncodedPair
from stages.io import filenames
from stages.score.config import HeldoutConfig, measured
from stages.train.config import TrainConfig
from tests import artifacts


def measure(folder: Path, policy: list[tuple[float, float]], tasks: list[str], **train: Any) -> Summary:
    """Pairs of two tokens per side; the reference gives every response -10, the policy what is given. Every pair
    is a part of its own."""
    pairs = [EncodedPair(f"{i}", [1], [2, 3], [4, 5], task=task, source=f"f:{i}") for i, task in enumerate(tasks)]
    shards = [[vars(pair)] for pair in pairs]
    inputs = {"shards": artifacts.of_rows(folder, "shards", filenames.SHARD, shards, SHARD)}
    for name, values in (("policy", policy), ("reference", [(-10.0, -10.0)] * len(pairs))):
        rows = [
            [{"pair_id": f"{i}", "chosen": chosen, "rejected": rejected, "mismatched": 0.0}]
            for i, (chosen, rejected) in enumerate(values)
        ]
        inputs[name] = artifacts.of_rows(folder, name, filenames.LOGPROBS, rows, LOGPROBS)
    return dict(artifacts.run(HELDOUT, folder, HeldoutConfig(objective=TrainConfig(**train)), inputs).summary)


def test_loss_accuracy_and_margin_by_hand(tmp_path: Path) -> None:
    """Margins are beta times the difference of log-ratios: 2 * (1 + 1) = 4 and 2 * (-1 - 0) = -2."""
    found = measure(tmp_path, [(-9.0, -11.0), (-11.0, -10.0)], ["", ""], beta=2.0)
    loss = (math.log(1 + math.exp(-4)) + math.log(1 + math.exp(2))) / 2
    assert found == {
        "pairs": 2, "loss": pytest.approx(loss, rel=1e-5), "reward_accuracy": 0.5, "reward_margin": pytest.approx(1.0),
        "kl": pytest.approx((1 - 1 - 1 + 0) / 4),
    }  # fmt: skip


def test_tasks_are_measured_apart(tmp_path: Path) -> None:
    found = measure(tmp_path, [(-9.0, -10.0), (-10.0, -9.0), (-8.0, -10.0)], ["a", "b", "a"], beta=1.0)
    assert found["tasks"]["a"] == {
        "pairs": 2, "loss": pytest.approx((math.log1p(math.exp(-1)) + math.log1p(math.exp(-2))) / 2, rel=1e-5),
        "reward_accuracy": 1.0, "reward_margin": pytest.approx(1.5),
    }  # fmt: skip
    assert found["tasks"]["b"]["reward_accuracy"] == 0.0
    assert found["pairs"] == 3


def test_a_policy_like_its_reference_has_a_loss_of_ln_2(tmp_path: Path) -> None:
    assert measure(tmp_path, [(-10.0, -10.0)], [""])["loss"] == pytest.approx(math.log(2))


def test_a_loss_that_is_not_finite_names_the_pair(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"f:1"):
        measure(tmp_path, [(-9.0, -10.0), (math.nan, -10.0)], ["", ""])


def test_what_is_measured_is_the_objective_without_what_is_not_about_the_pairs() -> None:
    train = TrainConfig(loss="ipo", beta=0.3, wpo=True, learning_rate=1e-3, sft_weight=0.5)
    kept = measured(train)
    assert (kept.loss, kept.beta, kept.sft_weight) == (train.loss, 0.3, 0.5)
    assert not kept.wpo
    assert measured(train.model_copy(update={"learning_rate": 1.0})) == kept
