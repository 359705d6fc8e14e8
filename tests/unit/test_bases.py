"""The base model that one training of a process leaves to the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stages.core.forward.logprobs import freeze
from stages.io.filenames import MODEL
from stages.train.bases import Bases
from stages.train.config import TrainConfig
from tests import tiny, zoo

CPU = torch.device("cpu")
LORA = TrainConfig(lora={"rank": 4}, learning_rate=1e-3)  # type: ignore[arg-type]
FULL = TrainConfig(learning_rate=1e-3)


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    tiny.save(tmp_path / MODEL)
    return tmp_path


def begin(bases: Bases, config: TrainConfig, policy: Path, change: bool = True) -> dict[str, Any]:
    """The weights that a training begins with; then it changes all that it trains."""
    torch.manual_seed(config.seed)
    with bases.policy(config, policy, CPU) as built:
        freeze(built.model, config.precision)
        found = {name: value.detach().clone() for name, value in built.model.named_parameters()}
        for parameter in built.model.parameters():
            if change and parameter.requires_grad:
                parameter.data += 1.0
    return found


def same(first: dict[str, Any], other: dict[str, Any]) -> bool:
    return first.keys() == other.keys() and all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("config", [LORA, FULL], ids=["lora", "full"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_training_on_a_kept_base_begins_like_one_on_a_loaded_base(
    policy: Path, config: TrainConfig, precision: str
) -> None:
    config = config.model_copy(update={"precision": precision})
    other = config.model_copy(update={"seed": 7, "beta": 0.3, "batch_size": 2})
    bases = Bases()
    first = [begin(bases, each, policy) for each in (config, other, config)]
    assert bases.loads == 1
    assert same(first[0], first[2])
    assert same(first[1], begin(Bases(), other, policy))


def test_an_adapter_of_another_rank_goes_on_the_same_base(policy: Path) -> None:
    bases = Bases()
    wide = LORA.model_copy(update={"lora": LORA.lora.model_copy(update={"rank": 8})})  # type: ignore[union-attr]
    begin(bases, LORA, policy)
    assert same(begin(bases, wide, policy), begin(Bases(), wide, policy))
    assert bases.loads == 1


def test_a_base_that_was_frozen_as_it_is_stored_is_in_float32_for_an_adapter_on_its_embedding(policy: Path) -> None:
    zoo.model("llama, untied").to(torch.bfloat16).save_pretrained(policy / MODEL)
    assert LORA.lora is not None
    on = LORA.lora.model_copy(update={"target_modules": ("embed_tokens", "q_proj")})
    everywhere, bases = LORA.model_copy(update={"lora": on}), Bases()
    begin(bases, LORA, policy)
    assert same(begin(bases, everywhere, policy), begin(Bases(), everywhere, policy))
    assert bases.loads == 1


@pytest.mark.parametrize(
    "other",
    [FULL, LORA.model_copy(update={"precision": "fp32"}), LORA.model_copy(update={"layout": "padded"})],
    ids=["full", "precision", "layout"],
)
def test_a_base_in_another_state_is_loaded_anew(policy: Path, other: TrainConfig) -> None:
    bases = Bases()
    begin(bases, LORA, policy)
    assert same(begin(bases, other, policy), begin(Bases(), other, policy))
    assert bases.loads == 2


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(lora={"rank": 4, "dora": True}),  # type: ignore[arg-type]
        TrainConfig(peft={"peft_type": "LORA", "r": 4, "bias": "all"}),
        TrainConfig(peft={"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}),
    ],
    ids=["dora", "bias", "virtual tokens"],
)
def test_a_base_that_does_not_come_back_as_it_was_is_not_kept(policy: Path, config: TrainConfig) -> None:
    bases = Bases()
    first = begin(bases, config, policy)
    assert same(first, begin(bases, config, policy))
    assert bases.loads == 2


def test_after_an_error_the_base_is_loaded_anew(policy: Path) -> None:
    bases = Bases()
    with pytest.raises(RuntimeError, match="broken"), bases.policy(LORA, policy, CPU):
        raise RuntimeError("broken")
    begin(bases, LORA, policy)
    assert bases.loads == 2


def test_an_ordinary_training_keeps_nothing(policy: Path) -> None:
    bases = Bases(keep=False)
    begin(bases, LORA, policy)
    begin(bases, LORA, policy)
    assert bases.loads == 2
