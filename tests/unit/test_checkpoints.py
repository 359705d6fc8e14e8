from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open

from stages.core.forward.logprobs import ResponseLogprobs
from stages.train import checkpoints
from stages.train.checkpoints import TrainState
from stages.train.config import TrainConfig
from stages.train.loop import train_steps
from stages.train.policy import without_dropout
from stages.train.worker import Worker
from tests import zoo
from tests.memory import MemoryData, random_pairs
from tests.workers import Group, Replica

CONFIG = TrainConfig(precision="fp32", batch_size=2, learning_rate=1e-2, weight_decay=0.1)
STEPS = 6


def data() -> MemoryData:
    return MemoryData(random_pairs(12, longest=12)).scored_by(zoo.eager())


def full(seed: int) -> Any:
    return zoo.eager(seed)


def adapted(seed: int) -> Any:
    """With dropout, so that going on needs the random state too. The base is always the same; the adapter is not."""
    model = zoo.eager()
    torch.manual_seed(seed)
    settings = LoraConfig(r=4, lora_dropout=0.3, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return get_peft_model(model, settings)


def fresh(build: Any, seed: int = 0) -> TrainState:
    model = without_dropout(ResponseLogprobs(build(seed), "shared", "fp32"))
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1.0, weight_decay=CONFIG.weight_decay, fused=True
    )
    torch.manual_seed(seed)
    return TrainState(model, optimizer, 0, [])


def advance(state: TrainState, data: MemoryData, until: int) -> TrainState:
    for row in train_steps(state.model, state.optimizer, data, CONFIG, Worker(), "shared", state.step):
        state.step = int(row["step"])
        state.metrics.append(row)
        if state.step == until:
            break
    return state


@pytest.fixture(scope="module")
def unbroken() -> dict[Any, TrainState]:
    subject = data()
    return {build: advance(fresh(build), subject, STEPS) for build in (full, adapted)}


@pytest.mark.parametrize("stop", range(1, STEPS))
@pytest.mark.parametrize("build", [full, adapted])
def test_a_run_continued_at_any_step_equals_an_unbroken_one_bit_for_bit(
    build: Any, stop: int, unbroken: dict[Any, TrainState], tmp_path: Path
) -> None:
    subject = data()
    checkpoints.save(advance(fresh(build), subject, stop), tmp_path)
    torch.manual_seed(99)  # another process draws from another state
    other = fresh(build, seed=5)
    continued = checkpoints.load(tmp_path, other.model, other.optimizer)
    assert continued.step == stop
    advance(continued, subject, STEPS)
    expected, found = unbroken[build].model.state_dict(), continued.model.state_dict()
    assert set(expected) == set(found)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert results(continued) == results(unbroken[build])
    assert len(continued.metrics) == STEPS


def results(state: TrainState) -> list[dict[str, float]]:
    """The metrics without the times."""
    times = ("seconds", "tokens_per_second")
    return [{name: value for name, value in row.items() if name not in times} for row in state.metrics]


def test_dropout_is_drawn_anew_in_every_step_and_by_every_worker() -> None:
    """Were it not, going on would be the same bit for bit for the wrong reason."""
    subject = MemoryData(data().items[:1] * 2, torch.zeros(3, 2))
    config = CONFIG.model_copy(update={"learning_rate": 1e-30, "epochs": 3, "weight_decay": 0.0})
    state = fresh(adapted)
    with torch.no_grad():
        for name, parameter in state.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    seen = set()
    for rank in (0, 1):
        model = Replica(state.model, Group(1), 0)
        rows = train_steps(model, state.optimizer, subject, config, Worker(rank, 2), "shared")
        seen |= {row["loss"] for row in rows}
    assert len(seen) == 6


@pytest.mark.parametrize("build", [full, adapted])
def test_files_are_safetensors_and_json_only(build: Any, tmp_path: Path) -> None:
    checkpoints.save(advance(fresh(build), data(), 2), tmp_path)
    for file in tmp_path.rglob("*"):
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                assert list(tensors.keys())
        else:
            assert file.suffix in (".json", ".jsonl")
            assert all(isinstance(json.loads(line), dict) for line in file.read_text().splitlines())


def test_only_what_is_trained_is_saved(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "adapted").mkdir()
    checkpoints.save(advance(fresh(full), data(), 1), tmp_path / "full")
    checkpoints.save(advance(fresh(adapted), data(), 1), tmp_path / "adapted")
    sizes = {name: sum(file.stat().st_size for file in (tmp_path / name).iterdir()) for name in ("full", "adapted")}
    assert sizes["adapted"] < sizes["full"] / 3


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    checkpoints.save(advance(fresh(full), data(), 1), tmp_path)
    other = fresh(adapted)
    with pytest.raises(KeyError, match="lora"):
        checkpoints.load(tmp_path, other.model, other.optimizer)


def test_a_checkpoint_before_the_first_step_can_be_continued(tmp_path: Path) -> None:
    subject = data()
    checkpoints.save(fresh(full), tmp_path)
    other = fresh(full, seed=5)
    continued = advance(checkpoints.load(tmp_path, other.model, other.optimizer), subject, 2)
    unbroken = advance(fresh(full), subject, 2)
    assert [row["loss"] for row in continued.metrics] == [row["loss"] for row in unbroken.metrics]


class _Nested(torch.optim.SGD):
    """Keeps its state of a parameter as bitsandbytes' 8-bit optimizers do: moments in a mapping inside, whole steps."""

    def state_dict(self) -> dict[str, Any]:
        inner = {"state1": torch.tensor([3, 250], dtype=torch.uint8), "absmax1": torch.tensor([0.5])}
        return {"state": {0: {"step": 7, "__quantised__": inner}}, "param_groups": super().state_dict()["param_groups"]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.given = state_dict["state"]


def test_8_bit_moments_come_back_as_they_were(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 1)
    optimizer = _Nested(model.parameters(), lr=1.0)
    checkpoints.save(TrainState(model, optimizer, 3, []), tmp_path)
    checkpoints.load(tmp_path, model, optimizer)
    (state,) = optimizer.given.values()
    assert state["step"] == 7
    assert isinstance(state["step"], int)
    assert state["__quantised__"]["state1"].tolist() == [3, 250]
    assert state["__quantised__"]["state1"].dtype == torch.uint8
    assert state["__quantised__"]["absmax1"].tolist() == [0.5]


def test_the_last_checkpoint_has_weights_alone(tmp_path: Path) -> None:
    ended = advance(fresh(full), data(), STEPS)
    checkpoints.save(ended, tmp_path)
    with safe_open(tmp_path / "state.safetensors", "pt") as stored:
        assert {name.partition(".")[0] for name in stored.keys()} == {"weight"}  # noqa: SIM118
    loaded = fresh(full, seed=3)
    loaded = checkpoints.load(tmp_path, loaded.model, loaded.optimizer)
    assert loaded.step == STEPS
    assert not list(train_steps(loaded.model, loaded.optimizer, data(), CONFIG, Worker(), "shared", loaded.step))
    for (name, weight), (_, other) in zip(ended.model.named_parameters(), loaded.model.named_parameters(), strict=True):
        assert torch.equal(weight, other), name
