"""Training on a real Ray Train: first loss, invariance, soft labels, adapters."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
from safetensors.torch import load_file

from stages.base import StageError, TrainResources
from stages.catalog import ENCODE, INGEST, MATERIALISE, PREPARE, REFERENCE, TRAIN
from stages.data.config import EncodeConfig, IngestConfig, PrepareConfig
from stages.io.artifact import Artifact
from stages.policy.config import MaterialiseConfig
from stages.score.config import ReferenceConfig
from stages.train.config import LoraConfig, TrainConfig
from tests import artifacts, specs

Execute = Callable[..., Artifact]
CONFIG = TrainConfig(learning_rate=1e-3, batch_size=6, epochs=2, precision="fp32")


@pytest.fixture
def inputs(execute: Execute, model_dir: Path, tmp_path: Path) -> Callable[[str], dict[str, Artifact]]:
    """What training takes, with the reference computed in the given precision, other prompts' answers included."""
    rows = specs.pairs(21)
    rows[3]["preference_probability"] = 0.7
    path = specs.jsonl(tmp_path / "pairs.jsonl", rows)
    policy = execute(MATERIALISE, MaterialiseConfig(date=date(2026, 1, 31)), {"source": model_dir})
    ingested = execute(INGEST, IngestConfig(kind="pairs"), {"files.0": path})
    tokens = execute(ENCODE, EncodeConfig(), {"policy": policy, "pairs": ingested})
    shards = execute(PREPARE, PrepareConfig(shard_rows=8), {"pairs.0": tokens})

    def make(precision: str) -> dict[str, Artifact]:
        config = ReferenceConfig.model_validate({"precision": precision, "mismatched": True})
        reference = execute(REFERENCE, config, {"policy": policy, "shards": shards})
        return {"policy": policy, "shards": shards, "reference": reference}

    return make


def metrics(artifact: Artifact) -> list[dict[str, float]]:
    return [json.loads(line) for line in artifact.path("metrics.jsonl").read_text().splitlines()]


NAMES = ("loss", "reward_margin", "chosen_logp", "kl", "grad_norm", "tokens", "pairs")


def assert_same(first: Artifact, other: Artifact) -> None:
    """The same metrics in every step, and the same weights in the end."""
    for name in NAMES:
        expected = [row[name] for row in metrics(first)]
        assert [row[name] for row in metrics(other)] == pytest.approx(expected, rel=1e-3, abs=1e-4), name
    weights = [load_file(artifact.path("model/model.safetensors")) for artifact in (first, other)]
    for name, tensor in weights[0].items():
        assert (weights[1][name] - tensor).abs().max() < 1e-4, name


def test_workers_micro_batches_and_layouts_do_not_change_the_trajectory(
    execute: Execute, inputs: Callable[[str], dict[str, Artifact]]
) -> None:
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


def test_losses_that_look_across_pairs_or_at_other_answers_see_all_workers(
    execute: Execute, inputs: Callable[[str], dict[str, Artifact]]
) -> None:
    given = inputs("fp32")
    config = TrainConfig.model_validate({**CONFIG.model_dump(), "loss": ["aot", "kto"], "epochs": 1})
    runs = [
        execute(TRAIN, config, given, TrainResources(workers=workers, cpus=1, micro_batch_tokens=400))
        for workers in (1, 2)
    ]
    assert {"loss/aot", "loss/kto"} < metrics(runs[0])[0].keys()
    assert_same(*runs)


def test_an_adapter_in_bf16_starts_at_ln_2_and_is_saved_apart_and_merged(
    execute: Execute, inputs: Callable[[str], dict[str, Artifact]]
) -> None:
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


def test_a_training_that_diverges_says_so(execute: Execute, inputs: Callable[[str], dict[str, Artifact]]) -> None:
    given = inputs("fp32")
    config = CONFIG.model_copy(update={"learning_rate": 1e30, "warmup": 0.0})
    with pytest.raises(StageError, match=r"not finite at step \d+(?: for the pairs .+)?; lower train\.learning_rate"):
        execute(TRAIN, config, given, TrainResources(max_failures=0))


def test_a_training_that_had_ended_but_was_not_committed_is_only_collected(
    inputs: Callable[[str], dict[str, Artifact]], tmp_path: Path
) -> None:
    """Killed between the last checkpoint and the commit: nothing is trained again."""
    given = inputs("fp32")
    made = [artifacts.run(TRAIN, tmp_path / "again", CONFIG, given, TrainResources()) for _ in range(2)]
    first, second = (metrics(artifact) for artifact in made)
    assert [row["seconds"] for row in first] == [row["seconds"] for row in second]
    assert load_file(made[0].path("model/model.safetensors")).keys()
    assert made[0].summary == made[1].summary
