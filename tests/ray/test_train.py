"""Training on a real Ray Train: first loss, invariance, soft labels, adapters, reward models."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import date
from functools import lru_cache
from pathlib import Path

import pytest
from safetensors.torch import load_file

from stages.base import StageError, TrainResources
from stages.catalog import ENCODE, INGEST, MATERIALISE, PREPARE, REFERENCE, TRAIN, TRAIN_REWARD
from stages.data.config import EncodeConfig, IngestConfig, PrepareConfig
from stages.io.artifact import Artifact, UserFile
from stages.policy.config import MaterialiseConfig
from stages.score.config import ReferenceConfig
from stages.train.config import LoraConfig, RewardConfig, TrainConfig
from tests import artifacts, specs

Execute = Callable[..., Artifact]
Inputs = Callable[[str], dict[str, Artifact]]
CONFIG = TrainConfig(learning_rate=1e-3, batch_size=6, epochs=2, precision="fp32")


@pytest.fixture(scope="module")
def prepared(cluster: None, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """The policy and the shards that all trainings here take."""
    folder = tmp_path_factory.mktemp("prepared")
    rows = specs.pairs(21)
    rows[3]["preference_probability"] = 0.7
    path = UserFile(str(specs.jsonl(folder / "pairs.jsonl", rows)), "pairs.jsonl")
    source = {"source": UserFile(str(model_dir), "tiny")}
    policy = artifacts.run(MATERIALISE, folder, MaterialiseConfig(date=date(2026, 1, 31)), source)
    ingested = artifacts.run(INGEST, folder, IngestConfig(kind="pairs"), {"files.0": path})
    tokens = artifacts.run(ENCODE, folder, EncodeConfig(), {"policy": policy, "pairs": ingested})
    shards = artifacts.run(PREPARE, folder, PrepareConfig(shard_rows=8), {"pairs.0": tokens})
    return {"policy": policy, "shards": shards}


@pytest.fixture(scope="module")
def inputs(prepared: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """What training takes, with the reference computed in the given precision, other prompts' answers included."""

    @lru_cache(None)
    def reference(precision: str) -> Artifact:
        config = ReferenceConfig.model_validate({"precision": precision, "mismatched": True})
        return artifacts.run(REFERENCE, tmp_path_factory.mktemp(precision), config, prepared)

    return lambda precision: {**prepared, "reference": reference(precision)}


def metrics(artifact: Artifact) -> list[dict[str, float]]:
    return [json.loads(line) for line in artifact.path("metrics.jsonl").read_text().splitlines()]


NAMES = ("loss", "reward_margin", "chosen_logp", "kl", "grad_norm", "tokens", "pairs")


def assert_same(first: Artifact, other: Artifact, names: tuple[str, ...] = NAMES) -> None:
    """The same metrics in every step, and the same weights in the end."""
    for name in names:
        expected = [row[name] for row in metrics(first)]
        assert [row[name] for row in metrics(other)] == pytest.approx(expected, rel=1e-3, abs=1e-4), name
    weights = [load_file(artifact.path("model/model.safetensors")) for artifact in (first, other)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert (weights[1][name] - tensor).abs().max() < 1e-4, name


def test_workers_micro_batches_and_layouts_do_not_change_the_trajectory(execute: Execute, inputs: Inputs) -> None:
    given = inputs("fp32")
    whole = execute(TRAIN, CONFIG, given, TrainResources(workers=1, micro_batch_tokens=100_000))
    first = metrics(whole)
    assert [row["pairs"] for row in first] == [6] * 7
    assert first[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert first[-1]["loss"] < first[0]["loss"] - 0.05
    padded = CONFIG.model_copy(update={"layout": "padded"})
    small = TrainResources(workers=1, micro_batch_tokens=1, checkpoint_every=2, checkpointing=True)
    assert_same(whole, execute(TRAIN, padded, given, small))
    assert_same(whole, execute(TRAIN, CONFIG, given, TrainResources(workers=2, cpus=1, micro_batch_tokens=400)))


def test_losses_that_look_across_pairs_or_at_other_answers_see_all_workers(execute: Execute, inputs: Inputs) -> None:
    given = inputs("fp32")
    config = TrainConfig.model_validate({**CONFIG.model_dump(), "loss": ["aot", "kto"], "epochs": 1})
    runs = [
        execute(TRAIN, config, given, TrainResources(workers=workers, cpus=1, strategy="fsdp", micro_batch_tokens=400))
        for workers in (1, 2)
    ]
    assert {"loss/aot", "loss/kto"} < metrics(runs[0])[0].keys()
    assert_same(*runs)


def test_two_workers_train_the_reward_model_of_one_whether_they_share_the_weights_out_or_not(
    execute: Execute, prepared: dict[str, Artifact]
) -> None:
    """Metrics to a thousandth, weights to 1e-4. The last step has one pair, so that one of the two workers has none.
    The head, which starts at zero, stands outside of the layers that are shared out one by one."""
    given = {**prepared, "heldout": prepared["shards"]}
    config = RewardConfig(learning_rate=1e-3, batch_size=8, epochs=5, precision="fp32", margin=0.5, warmup=0.0)
    one, replicas, shares = (
        execute(TRAIN_REWARD, config, given, resources)
        for resources in (
            TrainResources(cpus=1),
            TrainResources(cpus=1, workers=2, micro_batch_tokens=400),
            TrainResources(cpus=1, workers=2, micro_batch_tokens=400, strategy="fsdp"),
        )
    )
    rows = metrics(one)
    assert [row["pairs"] for row in rows] == [8] * 13 + [1]
    assert rows[0]["loss"] > rows[-2]["loss"] + 0.05
    assert one.summary["heldout"]["pairs"] == 21
    for made in (replicas, shares):
        names = ("loss", "reward_accuracy", "reward_margin", "chosen_reward", "grad_norm", "tokens", "pairs")
        assert_same(one, made, names)
        assert made.summary["heldout"] == pytest.approx(one.summary["heldout"], rel=1e-3, abs=1e-4)
        assert made.summary["stored_difference"] < 1e-4
        assert load_file(made.path("model/model.safetensors"))["score.weight"].abs().max() > 1e-4


def test_an_adapter_in_bf16_starts_at_ln_2_and_is_saved_apart_and_merged(execute: Execute, inputs: Inputs) -> None:
    given = inputs("bf16")
    config = CONFIG.model_copy(update={"precision": "bf16", "lora": LoraConfig(rank=4)})
    made = execute(TRAIN, config, given, TrainResources(micro_batch_tokens=300))
    assert metrics(made)[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert made.summary["first_loss"] == metrics(made)[0]["loss"]
    assert 0 <= made.summary["stored_difference"] < 1e-4  # nats per token
    assert json.loads(made.path("chat.json").read_text()) == {"date": "2026-01-31"}
    adapter = load_file(made.path("adapter/adapter_model.safetensors"))
    assert any(tensor.abs().max() > 0 for name, tensor in adapter.items() if "lora_B" in name)
    before = load_file(given["policy"].path("model/model.safetensors"))
    after = load_file(made.path("model/model.safetensors"))
    assert before.keys() == after.keys()
    changed = [name for name in before if (before[name] != after[name]).any()]
    assert changed
    assert all("q_proj" in name or "v_proj" in name for name in changed)


def test_a_training_that_diverges_says_so(execute: Execute, inputs: Inputs) -> None:
    given = inputs("fp32")
    config = CONFIG.model_copy(update={"learning_rate": 1e30, "warmup": 0.0})
    with pytest.raises(StageError, match=r"not finite at step \d+(?: for the pairs .+)?; lower train\.learning_rate"):
        execute(TRAIN, config, given, TrainResources(max_failures=0))


def test_a_training_that_had_ended_but_was_not_committed_is_only_collected(inputs: Inputs, tmp_path: Path) -> None:
    """Killed between the last checkpoint and the commit: nothing is trained again."""
    given = inputs("fp32")
    made = [artifacts.run(TRAIN, tmp_path / "again", CONFIG, given, TrainResources()) for _ in range(2)]
    first, second = (metrics(artifact) for artifact in made)
    assert [row["seconds"] for row in first] == [row["seconds"] for row in second]
    assert load_file(made[0].path("model/model.safetensors")).keys()
    assert made[0].summary == made[1].summary
