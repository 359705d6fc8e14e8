"""Policies with every kind of adapter: built, trained a little, saved, loaded."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import GraniteConfig, GraniteForCausalLM

from stages.base import StageError
from stages.catalog import PROMOTE
from stages.core.forward.layout import choose_layout
from stages.core.forward.logprobs import ResponseLogprobs
from stages.core.forward.packing import collate
from stages.io.filenames import ADAPTER, MODEL
from stages.judge.config import PromoteConfig
from stages.policy.adapter_settings import prompt_adapter
from stages.policy.config import MERGEABLE, PROMPT_LEARNING, TYPES
from stages.policy.load import load_model, load_policy, product_precision
from stages.train import policy as policies
from stages.train.config import LoraConfig, TrainConfig
from tests import artifacts, tiny
from tests.memory import random_pairs, score

CPU = torch.device("cpu")
IDS = torch.tensor([random_pairs(1)[0].prompt_ids])
SETTINGS: dict[str, dict[str, Any]] = {
    "LORA": {"r": 4, "target_modules": ["q_proj", "o_proj"]},
    "IA3": {},
    "LOHA": {"r": 4},
    "LOKR": {"r": 4},
    "VERA": {"r": 8},
    "OFT": {"oft_block_size": 8},
    "PREFIX_TUNING": {"num_virtual_tokens": 5},
    "PROMPT_TUNING": {"num_virtual_tokens": 5},
}
CONFIGS = {
    **{name: TrainConfig(peft={"peft_type": name, **settings}) for name, settings in SETTINGS.items()},
    "lora": TrainConfig(lora=LoraConfig(rank=4), precision="fp32"),
    "dora": TrainConfig(lora=LoraConfig(rank=4, dora=True)),
    "rslora": TrainConfig(lora=LoraConfig(rank=4, rslora=True), precision="fp32"),
    "prefix with a projection": TrainConfig(
        peft={"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 5, "prefix_projection": True,
              "encoder_hidden_size": 16}
    ),
    "prompt from the vocabulary": TrainConfig(
        peft={"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 5, "prompt_tuning_init": "SAMPLE_VOCAB"}
    ),
}  # fmt: skip
PROMPTS = [name for name, config in CONFIGS.items() if config.prompt_learning]


@pytest.fixture
def initial(tmp_path: Path) -> Path:
    folder = tmp_path / "initial"
    tiny.save(folder / MODEL)
    return folder


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    result: torch.Tensor = model.eval()(IDS).logits[:, -IDS.shape[1] :]
    return result


def moved(policy: Any) -> Any:
    """The policy after a few steps on one sequence."""
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=0.05)
    for _ in range(5):
        policy(IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return policy


def test_every_type_that_a_spec_may_name_is_tested_here() -> None:
    assert set(SETTINGS) == set(TYPES)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_policy_is_trained_saved_and_loaded_as_it_behaves(name: str, initial: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    policy = policies.build_policy(CONFIGS[name], initial)
    before = logits(policy)
    trained = [p for p in policy.parameters() if p.requires_grad]
    assert 0 < sum(p.numel() for p in trained) < sum(p.numel() for p in policy.parameters())
    expected = logits(moved(policy))
    assert not torch.allclose(expected, before, atol=0.02)
    policies.save_policy(policy, CONFIGS[name], initial, tmp_path)
    torch.testing.assert_close(logits(load_policy(tmp_path, CPU)), expected, atol=1e-4, rtol=1e-4)
    assert (tmp_path / ADAPTER / "adapter_model.safetensors").is_file()
    assert not list(tmp_path.rglob("*.bin"))
    model = logits(load_model(tmp_path, CPU))
    torch.testing.assert_close(model, logits(tiny.model()) if name in PROMPTS else expected, atol=1e-4, rtol=1e-4)
    assert (prompt_adapter(tmp_path) is not None) == (name in PROMPTS)


@pytest.mark.parametrize("name", MERGEABLE)
def test_a_mergeable_adapter_changes_nothing_at_first(name: str, initial: Path) -> None:
    torch.testing.assert_close(logits(policies.build_policy(CONFIGS[name], initial)), logits(tiny.model()))


@pytest.mark.parametrize("name", PROMPTS)
def test_virtual_tokens_are_trained_on_and_not_wrapped_twice(name: str, initial: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    policy = moved(policies.build_policy(CONFIGS[name], initial))
    policies.save_policy(policy, CONFIGS[name], initial, tmp_path / "first")
    again = policies.build_policy(CONFIGS[name], tmp_path / "first")
    torch.testing.assert_close(logits(again), logits(policy), atol=1e-5, rtol=1e-5)
    names = [n for n, p in again.named_parameters() if p.requires_grad]
    assert names
    assert all("prompt_encoder" in n for n in names)
    expected = logits(moved(again))
    assert not torch.allclose(expected, logits(policy), atol=0.02)
    policies.save_policy(again, CONFIGS[name], tmp_path / "first", tmp_path / "second")
    torch.testing.assert_close(logits(load_policy(tmp_path / "second", CPU)), expected, atol=1e-4, rtol=1e-4)


def test_a_promoted_policy_keeps_its_virtual_tokens(initial: Path, tmp_path: Path) -> None:
    config = CONFIGS["PROMPT_TUNING"]
    policies.save_policy(policies.build_policy(config, initial), config, initial, tmp_path / "new")
    measured = {"baseline": "base", "against": {"base": {"win_rate": {"mean": 1.0, "low": 1.0}}}}
    rates = artifacts.made(artifacts.output(tmp_path, "rates"), measured)
    inputs = {"candidate": tmp_path / "new", "champion": initial, "evaluation": rates}
    made = artifacts.run(PROMOTE, tmp_path, PromoteConfig(win_rate=0.5), inputs)
    torch.testing.assert_close(logits(load_policy(made.folder(), CPU)), logits(load_policy(tmp_path / "new", CPU)))


def test_an_adapter_of_another_model_is_an_error_that_says_so(initial: Path, tmp_path: Path) -> None:
    config = CONFIGS["PREFIX_TUNING"]
    policies.save_policy(policies.build_policy(config, initial), config, initial, tmp_path / "policy")
    settings = json.loads((tmp_path / "policy" / ADAPTER / "adapter_config.json").read_text())
    settings["num_virtual_tokens"] = 7
    (tmp_path / "policy" / ADAPTER / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(StageError, match="does not fit the model"):
        load_policy(tmp_path / "policy", CPU)


def unlisted(folder: Path) -> Path:
    """A policy of an architecture that peft's tables do not list."""
    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    GraniteForCausalLM(config).save_pretrained(folder / MODEL)
    tiny.tokenizer().save_pretrained(folder / MODEL)
    return folder


@pytest.mark.parametrize("name", [n for n in CONFIGS if "target_modules" not in SETTINGS.get(n, {})])
def test_an_architecture_that_peft_does_not_list_is_adapted_everywhere_but_in_the_head(
    name: str, tmp_path: Path
) -> None:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as TABLE

    assert "granite" not in TABLE
    initial = unlisted(tmp_path / "initial")
    policy = policies.build_policy(CONFIGS[name], initial)
    if name not in PROMPTS:
        adapted = {n.rsplit(".", 1)[1] for n, m in policy.named_modules() if hasattr(m, "base_layer")}
        assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    expected = logits(moved(policy))
    policies.save_policy(policy, CONFIGS[name], initial, tmp_path / "made")
    torch.testing.assert_close(logits(load_policy(tmp_path / "made", CPU)), expected, atol=1e-4, rtol=1e-4)


def test_dora_and_rslora_reach_peft(initial: Path) -> None:
    dora, rslora = (policies.build_policy(CONFIGS[n], initial).peft_config["default"] for n in ("dora", "rslora"))
    assert (dora.use_dora, dora.use_rslora) == (True, False)
    assert (rslora.use_dora, rslora.use_rslora) == (False, True)


DROPOUTS = {
    "LORA": {"lora_dropout": 0.5},
    "LOHA": {"rank_dropout": 0.5},
    "LOKR": {"module_dropout": 0.5},
    "VERA": {"vera_dropout": 0.5},
}


@pytest.mark.parametrize("name", DROPOUTS)
def test_an_adapters_own_dropout_stays_on_in_training_and_nothing_elses(name: str, tmp_path: Path) -> None:
    model = tiny.model()
    model.config.attention_dropout = 0.5
    model.save_pretrained(tmp_path / MODEL)
    pairs = random_pairs(2)

    def twice(dropout: dict[str, Any]) -> bool:
        """Whether two passes in training give the same."""
        settings = {"peft_type": name, **SETTINGS[name], **dropout}
        torch.manual_seed(0)
        policy = moved(policies.build_policy(TrainConfig(peft=settings), tmp_path))
        layout = choose_layout(policy, "auto")
        scorer = policies.without_dropout(ResponseLogprobs(policy, layout, "fp32"))
        results = [scorer(collate(pairs, layout)).logprobs for _ in range(4)]
        return all(torch.equal(results[0], other) for other in results[1:])

    assert twice({})
    assert not twice(DROPOUTS[name])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", [*MERGEABLE, "dora"])
def test_a_fresh_adapter_scores_as_the_reference_does(name: str, precision: str, initial: Path) -> None:
    pairs = random_pairs(4)
    expected = score(load_policy(initial, CPU), pairs, "shared", precision)
    policy = policies.without_dropout(policies.build_policy(CONFIGS[name], initial))
    found = score(policy, pairs, "shared", precision)
    # DoRA, OFT and VeRA multiply by what is one but for rounding
    torch.testing.assert_close(found, expected, atol=1e-4 if precision == "fp32" else 0.5, rtol=1e-6)


def test_the_optimizer_takes_its_settings() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = policies.build_optimizer([parameter], TrainConfig(learning_rate=0.25, weight_decay=0.5))
    assert type(optimizer) is torch.optim.AdamW
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.25, 0.5)


def test_the_8_bit_optimizer_comes_from_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def adamw(parameters: Any, **settings: Any) -> str:
        made.append((list(parameters), settings))
        return "optimizer"

    stub = SimpleNamespace(optim=SimpleNamespace(AdamW8bit=adamw))
    monkeypatch.setitem(sys.modules, "bitsandbytes", stub)
    parameter = torch.nn.Parameter(torch.ones(3))
    config = TrainConfig(optimizer="adamw_8bit", learning_rate=0.25, weight_decay=0.5)
    assert policies.build_optimizer([parameter], config) == "optimizer"
    assert made == [([parameter], {"lr": 0.25, "weight_decay": 0.5})]


@pytest.mark.parametrize(
    ("quantization", "precision", "expected"),
    [
        ("8bit", "bf16", {"load_in_8bit": True}),
        ("4bit", "bf16", {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"}),
        ("4bit", "fp32", {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "float32"}),
    ],
)
def test_a_quantised_base_is_asked_for_with_the_right_arguments(
    quantization: Any, precision: Any, expected: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def from_pretrained(path: Path, **options: Any) -> Any:
        asked.update(options, path=path)
        return tiny.model(), {"missing_keys": set()}

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")  # one that has bfloat16
    monkeypatch.setattr("stages.policy.load.AutoModelForCausalLM.from_pretrained", from_pretrained)
    config = TrainConfig(lora=LoraConfig(rank=4), quantization=quantization, precision=precision)
    policy = policies.build_policy(config, tmp_path)
    assert any(p.requires_grad for p in policy.parameters())
    assert asked["path"] == tmp_path / MODEL
    assert asked["use_safetensors"] is True
    assert asked["device_map"] == {"": policies.device_of_worker()}
    settings = asked["quantization_config"].to_dict()
    assert {name: settings[name] for name in expected} == expected


def test_an_adapter_on_a_quantised_base_is_merged_into_what_that_base_stands_for(
    initial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIGS["lora"].model_copy(update={"quantization": "8bit"})

    def load(path: Path, device: torch.device, quantization: str | None = None, precision: str = "bf16") -> Any:
        assert quantization == "8bit"
        model = tiny.model(seed=1)
        model.dequantize = lambda: tiny.model(seed=2)
        return model

    monkeypatch.setattr(policies, "load_model", load)
    policies.save_policy(moved(policies.build_policy(config, initial)), config, initial, tmp_path)
    expected = logits(PeftModel.from_pretrained(tiny.model(seed=2), tmp_path / ADAPTER))
    assert not torch.allclose(expected, logits(tiny.model(seed=2)), atol=0.02)
    torch.testing.assert_close(logits(load_model(tmp_path, CPU)), expected, atol=1e-4, rtol=1e-4)


def test_prompt_types_are_those_that_cannot_be_merged() -> None:
    assert not set(PROMPT_LEARNING) & set(MERGEABLE)


@pytest.mark.parametrize(
    ("capability", "device", "found"),
    [
        ("AVX2", "cpu", "fp32"), ("DEFAULT", "cpu", "fp32"), ("AVX512", "cpu", "bf16"), ("Ampere", "cuda", "bf16"),
        ("Turing", "cuda", "fp32"),
    ],
)  # fmt: skip
def test_bfloat16_is_left_to_processors_that_have_it(
    capability: str, device: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    # A card before Ampere says yes if emulation counts.
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or capability == "Ampere"
    )
    assert product_precision("bf16", torch.device(device)) == found
    assert product_precision("fp32", torch.device(device)) == "fp32"
