"""Models that are built without their weights, what they are when these have been read, and how files are written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stages.base import StageError
from stages.core.forward.config import KNOWN
from stages.core.forward.layout import choose_layout, why_padded
from stages.core.forward.logprobs import freeze
from stages.io.filenames import MODEL
from stages.policy import save
from stages.policy.hollow import hollow
from stages.policy.load import load_frozen, load_model
from stages.train import save_shares
from stages.train.config import LoraConfig, TrainConfig
from stages.train.policy import build_policy, hollow_policy, put_on, save_policy
from tests import zoo
from tests.memory import random_pairs, score

CPU = torch.device("cpu")
MIXTURES = ("mixtral", "qwen3_moe", "deepseek_v3", "phimoe")
"""Of these the files have one weight for each expert."""
READ = (*zoo.LLAMA_LIKE, "gpt2", "gemma2", "gemma3", "phi3", "granite", "gpt_oss", *MIXTURES)
LORA = TrainConfig(lora=LoraConfig(rank=4, target_modules=("q_proj", "v_proj")))


@pytest.fixture
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A policy of the family that is asked for, in bfloat16 but for its vectors."""
    name = getattr(request, "param", "llama")
    zoo.model(name).save_pretrained(tmp_path / "policy" / MODEL)
    for file in (tmp_path / "policy" / MODEL).glob("*.safetensors"):
        weights = {n: w.to(torch.bfloat16) if w.dim() > 1 else w for n, w in load_file(file).items()}
        save_file(weights, file, {"format": "pt"})
    return tmp_path / "policy"


@pytest.mark.parametrize("stored", READ, indirect=True)
def test_a_model_that_is_filled_is_the_one_that_transformers_loads(stored: Path) -> None:
    made, expected = hollow(stored / MODEL, "eager"), load_model(stored, CPU)
    assert made is not None
    assert all(parameter.untyped_storage().nbytes() <= 4 for parameter in made.model.parameters())
    made.fill(CPU)
    own, others = made.model.state_dict(), expected.state_dict()
    assert own.keys() == others.keys()
    assert all(torch.equal(own[name], others[name]) and own[name].dtype == torch.float32 for name in own)
    ids = torch.tensor([[5, 9, 7]])
    assert torch.equal(made.model(ids).logits, expected(ids).logits)
    assert not made.model.training


@pytest.mark.parametrize("family", sorted(KNOWN))
def test_what_is_run_packed_and_loaded_in_shares_without_a_trial_is_right(family: str, tmp_path: Path) -> None:
    model = zoo.of_family(family)
    assert why_padded(model) is None
    model.save_pretrained(tmp_path)
    made = hollow(tmp_path, "eager")
    assert made is not None
    made.fill(CPU)
    ids = torch.tensor([[5, 9, 7]])
    with torch.no_grad():
        assert torch.equal(made.model(ids).logits, model(ids).logits)


@pytest.mark.parametrize("stored", ["jamba", "mamba"], indirect=True)
def test_a_family_that_is_not_known_is_loaded_whole(stored: Path) -> None:
    assert hollow(stored / MODEL, "eager") is None
    assert hollow_policy(LORA, stored, CPU) is None
    frozen = load_frozen(stored, CPU, "bf16")
    assert {parameter.dtype for parameter in frozen.parameters()} == {torch.float32}


@pytest.mark.parametrize("stored", READ, indirect=True)
def test_a_frozen_model_takes_what_it_is_stored_in_and_gives_the_same_bits(stored: Path) -> None:
    pairs = random_pairs(3)
    whole = freeze(load_model(stored, CPU).requires_grad_(False), "bf16")
    frozen = load_frozen(stored, CPU, "bf16")
    layout = choose_layout(frozen, "auto")
    assert layout == choose_layout(whole, "auto")
    with torch.no_grad():
        assert torch.equal(score(frozen, pairs, layout, "bf16"), score(whole, pairs, layout, "bf16"))

    def size(model: Any) -> int:
        return sum(parameter.nbytes for parameter in model.parameters())

    assert size(frozen) <= size(whole)
    plain = [m for m in frozen.modules() if type(m) in (torch.nn.Linear, torch.nn.Embedding)]
    scaled = frozen.get_input_embeddings().weight if "gemma" in frozen.config.model_type else None  # in float32
    assert {module.weight.dtype for module in plain if module.weight is not scaled} <= {torch.bfloat16}
    vectors = [parameter for parameter in frozen.parameters() if parameter.dim() == 1]
    assert {parameter.dtype for parameter in vectors} == {torch.float32}


def test_a_head_that_only_the_configuration_ties_is_loaded_as_transformers_does(tmp_path: Path) -> None:
    """transformers keeps a head in the files that is not the embedding, whatever the configuration says."""
    folder = tmp_path / MODEL
    zoo.model("llama, untied").save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    assert hollow(folder, "eager") is None
    file = folder / "model.safetensors"
    weights = load_file(file)
    save_file(weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}, file, {"format": "pt"})
    assert hollow(folder, "eager") is not None


@pytest.mark.parametrize("stored", READ, indirect=True)
def test_a_model_has_one_layout_frozen_and_in_training(stored: Path) -> None:
    layouts = {choose_layout(load_frozen(stored, CPU, "bf16"), "auto"), choose_layout(load_model(stored, CPU), "auto")}
    shares = hollow_policy(TrainConfig(), stored, CPU)
    assert shares is not None
    assert layouts == {choose_layout(shares.policy, "auto", filled=False)} == {"shared"}


def test_what_is_used_in_float32_is_read_in_it(stored: Path) -> None:
    assert {parameter.dtype for parameter in load_frozen(stored, CPU, "fp32").parameters()} == {torch.float32}
    full = hollow_policy(TrainConfig(), stored, CPU)
    assert full is not None
    full.base.fill(CPU)
    assert {parameter.dtype for parameter in full.policy.parameters()} == {torch.float32}


def test_an_adapter_begins_as_it_would_on_a_whole_model(stored: Path) -> None:
    torch.manual_seed(3)
    expected = put_on(load_model(stored, CPU), LORA)
    torch.manual_seed(3)
    made = hollow_policy(LORA, stored, CPU)
    assert made is not None
    assert len(made.adapted()) == 4
    found = {name: value for name, value in made.policy.named_parameters() if value.requires_grad}
    assert all(torch.equal(value, dict(expected.named_parameters())[name]) for name, value in found.items())
    assert all("lora_" in name for name in found)


def test_an_adapter_on_an_embedding_is_put_on_a_whole_model_with_the_same_draws(tmp_path: Path) -> None:
    zoo.model("llama, untied").save_pretrained(tmp_path / MODEL)
    config = TrainConfig(lora=LoraConfig(rank=4, target_modules=("embed_tokens", "q_proj")))
    torch.manual_seed(3)
    expected = put_on(load_model(tmp_path, CPU), config)
    torch.manual_seed(3)
    built = build_policy(config, tmp_path, CPU)
    for (name, value), other in zip(built.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(value, other), name


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")  # peft's own, which then sets it
@pytest.mark.parametrize("name", ["full", "lora"])
@pytest.mark.parametrize("stored", ["llama", "gpt2", "gpt_oss", *MIXTURES], indirect=True)
def test_a_policy_saved_from_shares_is_the_one_that_is_saved_whole(name: str, stored: Path, tmp_path: Path) -> None:
    """Without other workers; several do it in tests/ray/test_parallel.py. GPT-2 stores its weights transposed."""
    config = TrainConfig(precision="fp32", lora=LoraConfig(rank=4) if name == "lora" else None)
    torch.manual_seed(0)
    made = hollow_policy(config, stored, CPU)
    assert made is not None
    made.base.fill(CPU)
    with torch.no_grad():
        for parameter in made.policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    save_policy(made.policy, config, stored, tmp_path / "whole")
    save_shares.save(made, stored, tmp_path / "shares")
    save_shares.save(made, stored, None)
    for file in sorted((tmp_path / "whole").rglob("*")):
        other = tmp_path / "shares" / file.relative_to(tmp_path / "whole")
        if file.suffix != ".safetensors":
            assert file.is_dir() or file.read_bytes() == other.read_bytes()
            continue
        weights, others = load_file(file), load_file(other)
        assert weights.keys() == others.keys()
        assert all((weights[name] - others[name]).abs().max() < 1e-6 for name in weights)
    assert save_shares.check(tmp_path / "shares") == len(load_file(tmp_path / "shares" / MODEL / "model.safetensors"))


def test_a_stored_weight_that_is_not_what_was_written_is_found(stored: Path, tmp_path: Path) -> None:
    made = hollow_policy(TrainConfig(), stored, CPU)
    assert made is not None
    made.base.fill(CPU)
    save_shares.save(made, stored, tmp_path)
    file = tmp_path / MODEL / "model.safetensors"
    weights = load_file(file)
    name = "model.layers.1.mlp.down_proj.weight"
    weights[name] = weights[name].flip(0)
    save_file(weights, file)
    with pytest.raises(StageError, match=f"not the one that was trained: its weight {name} differs"):
        save_shares.check(tmp_path)
    del weights[name]
    save_file(weights, file)
    with pytest.raises(StageError, match=f"{name} is not among its weights"):
        save_shares.check(tmp_path)


def test_files_hold_an_eighth_of_all_weights_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save, "_SMALLEST", 1000)
    weights = {f"w{number:02d}": torch.full((10, 10), float(number)) for number in range(40)} | {
        "big": torch.ones(3000)
    }
    alive: list[str] = []

    def get(name: str) -> Tensor:
        alive.append(name)
        return weights[name]

    save.write_weights(tmp_path, {name: value.nbytes for name, value in weights.items()}, get)
    assert alive == list(weights)
    files = sorted(tmp_path.glob("*.safetensors"))
    eighth = sum(value.nbytes for value in weights.values()) // 8
    found: dict[str, Tensor] = {}
    for file in files:
        held = load_file(file)
        assert sum(value.nbytes for value in held.values()) <= eighth or list(held) == ["big"]
        found |= held
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert {name: (tmp_path / file).is_file() for name, file in index["weight_map"].items()} == dict.fromkeys(
        weights, True
    )
    assert math.isclose(index["metadata"]["total_size"], sum(value.nbytes for value in weights.values()))
