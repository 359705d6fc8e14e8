"""The adapter of a spec: what is taken, what is refused and how, and the engine that can serve it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.plan import rounds
from pipelines.plan.steps import Step
from pipelines.spec.checks import adapters, preflight
from pipelines.spec.load import validate
from stages.generate import config as generate_config
from stages.policy.adapter_settings import read_settings
from stages.policy.config import TYPES
from stages.train.config import TrainConfig
from tests.unit import workspace
from tests.unit.workspace import OFFLINE, SPEC

PAGE = Path(__file__).parents[2] / "docs" / "adapters.md"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return workspace.make(tmp_path)


def peft(text: str) -> str:
    return OFFLINE + f"train:\n  peft: {text}\n"


@pytest.mark.parametrize(
    "text",
    [
        "{peft_type: LORA, r: 4, use_rslora: true, lora_dropout: 0.1, rank_pattern: {q_proj: 2}}",
        "{peft_type: LORA, init_lora_weights: gaussian, target_modules: all-linear}",
        "{peft_type: IA3, target_modules: [k_proj, down_proj], feedforward_modules: [down_proj]}",
        "{peft_type: PREFIX_TUNING, num_virtual_tokens: 16, init_weights: zero}",
        "{peft_type: PROMPT_TUNING, num_virtual_tokens: 16, prompt_tuning_init: SAMPLE_VOCAB}",
        "{peft_type: OFT, oft_block_size: 8}",
        "{peft_type: VERA}",
        "{peft_type: LOHA, module_dropout: 0.1}",
        "{peft_type: LOKR, decompose_factor: 4}",
    ],
)
def test_pefts_own_settings_are_taken(folder: Path, text: str) -> None:
    train = workspace.loaded(folder, peft(text)).spec.train
    assert train.peft == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "where", "part"),
    [
        ("{peft_type: LORA, lora_alfa: 4}", "train.peft.lora_alfa", "did you mean 'lora_alpha'?"),
        ("{peft_type: IA3, r: 4}", "train.peft.r", "not a setting of IA3"),
        ("{peft_type: LORA, r: 0}", "train.peft.r", "at least 1, got 0"),
        ("{peft_type: LORA, r: many}", "train.peft.r", "valid integer, got 'many'"),
        ("{peft_type: LORA, lora_dropout: 1.5}", "train.peft.lora_dropout", "less than 1, got 1.5"),
        ("{peft_type: LORA, init_lora_weights: pissa}", "train.peft.init_lora_weights", "got 'pissa'"),
        ("{peft_type: LORA, megatron_config: {a: 1}}", "train.peft.megatron_config", "not a setting of LORA"),
        ("{peft_type: LORA, modules_to_save: [lm_head]}", "train.peft.modules_to_save", "not a setting of LORA"),
        ("{peft_type: LORA, base_model_name_or_path: x}", "train.peft.base_model_name_or_path", "not a setting"),
        (
            "{peft_type: PROMPT_TUNING, num_virtual_tokens: 2, prompt_tuning_init: TEXT}",
            "train.peft.prompt_tuning_init",
            'expected one of "RANDOM", "SAMPLE_VOCAB"',
        ),
        (
            "{peft_type: PROMPT_TUNING, num_virtual_tokens: 2, tokenizer_name_or_path: /tmp/x}",
            "train.peft.tokenizer_name_or_path",
            "not a setting",
        ),
        ("{peft_type: PREFIX_TUNING}", "train.peft.peft_type", "needs num_virtual_tokens"),
        ("{peft_type: PREFIX_TUNING, num_virtual_tokens: -1}", "train.peft.num_virtual_tokens", "at least 1, got -1"),
        (
            "{peft_type: IA3, target_modules: [a], feedforward_modules: [b]}",
            "train.peft",
            "`feedforward_modules` should be a subset of `target_modules`",
        ),
        ("{peft_type: PREFIX_TUNNING}", "train.peft", "did you mean 'PREFIX_TUNING'?"),
        ("{peft_type: ADALORA}", "train.peft", "expected a peft_type that Rondo trains, got 'ADALORA'"),
        ("{r: 4}", "train.peft", "needs peft_type"),
        ("{peft_type: LORA, r: 2024-01-01}", "train.peft", "only text, finite numbers"),
    ],
)
def test_what_peft_or_rondo_would_not_take_is_refused_where_it_stands(
    folder: Path, text: str, where: str, part: str
) -> None:
    problem = workspace.only(folder, peft(text))
    assert problem.where == f"spec.yaml:5 {where}"
    assert part in problem.message


def test_every_setting_that_is_handed_on_is_one_of_pefts() -> None:
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    for peft_type, names in TYPES.items():
        assert set(names) <= set(PEFT_TYPE_TO_CONFIG_MAPPING[peft_type].__dataclass_fields__), peft_type


def test_one_adapter_is_trained(folder: Path) -> None:
    problem = workspace.only(folder, OFFLINE + "train:\n  lora: {rank: 4}\n  peft: {peft_type: IA3}\n")
    assert problem.where == "spec.yaml:6 train.peft"
    assert "train.lora is given too" in problem.message


def test_the_settings_are_part_of_the_identity() -> None:
    configs = [
        TrainConfig(),
        TrainConfig(peft={"peft_type": "IA3"}),
        TrainConfig(peft={"peft_type": "LORA"}),
        TrainConfig(peft={"peft_type": "LORA", "r": 4}),
        TrainConfig(lora={"dora": True}),
        TrainConfig(lora={"dora": True}, quantization="8bit"),
        TrainConfig(optimizer="adamw_8bit"),
    ]
    assert len({json.dumps(config.identity()) for config in configs}) == len(configs)


def engines(folder: Path, train: str, *overrides: str) -> set[str]:
    planned = rounds.plan(workspace.loaded(folder, SPEC + train, *overrides).spec, folder)
    return {step.config.engine for step in planned.steps if isinstance(step.config, generate_config.RolloutConfig)}


def test_virtual_tokens_are_served_by_transformers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = "train: {peft: {peft_type: PROMPT_TUNING, num_virtual_tokens: 4}}\n"
    monkeypatch.setattr(generate_config, "find_spec", lambda name: object())
    monkeypatch.setattr(preflight, "find_spec", lambda name: object())
    assert engines(folder, prompts) == {"transformers"}
    assert engines(folder, "train: {peft: {peft_type: IA3}}\n") == {"vllm"}
    problem = workspace.only(folder, SPEC + prompts, "rollout.engine=vllm")
    assert problem.where == "--set rollout.engine"
    assert "vLLM cannot serve the virtual tokens of PROMPT_TUNING; use transformers" in problem.message
    text = OFFLINE + prompts
    assert workspace.loaded(folder, text, "rollout.engine=vllm").spec.train.prompt_learning


@pytest.mark.parametrize(
    ("train", "served"),
    [
        ("{lora: {rank: 4}}", True),
        ("{lora: {rank: 4, rslora: true}}", True),
        ("{lora: {rank: 4, dora: true}}", False),
        ("{lora: {rank: 4}, quantization: 8bit}", False),
        ("{peft: {peft_type: IA3}}", False),
    ],
)
def test_only_what_vllm_can_put_on_a_base_has_one(
    folder: Path, train: str, served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "find_spec", lambda name: object())
    planned = rounds.plan(workspace.loaded(folder, SPEC + f"train: {train}\n").spec, folder)
    (rollout,) = [step for step in planned.steps if step.key == "round-1/evaluate-rollout"]
    assert ("adapter_base" in rollout.inputs) == served


def test_a_quantised_base_is_the_references_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "find_spec", lambda name: object())
    text = OFFLINE + "train: {lora: {rank: 4}, quantization: 8bit}\n"
    (first,) = rounds.plan(workspace.loaded(folder, text).spec, folder).rounds
    reference = first.train.inputs["reference"]
    assert isinstance(reference, Step)
    assert reference.payload["config"] == {"quantization": "8bit"}
    assert first.train.payload["config"]["quantization"] == "8bit"


@pytest.mark.parametrize(
    ("train", "installed", "where", "part"),
    [
        ("lora: {rank: 4}, quantization: 8bit", False, "train.quantization", "8bit needs bitsandbytes: pip install"),
        ("optimizer: adamw_8bit", False, "train.optimizer", "adamw_8bit needs bitsandbytes: pip install"),
        ("quantization: 8bit", True, "train.quantization", "add train.lora"),
        ("quantization: 8bit, peft: {peft_type: IA3}", True, "train.quantization", "add train.lora"),
    ],
)
def test_what_quantisation_needs(
    folder: Path, train: str, installed: bool, where: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "find_spec", lambda name: object() if installed else None)
    problem = workspace.only(folder, OFFLINE + f"train: {{{train}}}\n")
    assert problem.where == f"spec.yaml:4 {where}"
    assert part in problem.message


def test_4_bits_need_a_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "find_spec", lambda name: object())
    text = OFFLINE + "train: {lora: {rank: 4}, quantization: 4bit}\n"
    missing = [problem.message.rsplit(" ", 1)[1] for problem in workspace.refused(folder, text)]
    assert missing == ["resources.train.gpus", "resources.reference.gpus"]
    workspace.loaded(folder, text + "resources: {train: {gpus: 1}, reference: {gpus: 1}}\n")


def saved(folder: Path, weights: bool = True, **settings: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "bias": "none", **settings}))
    if weights:
        (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


def test_a_saved_adapter_is_read_without_what_peft_writes_beside(tmp_path: Path) -> None:
    written = {"base_model_name_or_path": "/x", "inference_mode": True, "megatron_core": "megatron.core"}
    assert read_settings(saved(tmp_path / "a", **written)) == {"peft_type": "LORA", "r": 4}


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"megatron_config": {"a": 1}}, "megatron_config: not a setting"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save: not a setting"),
        ({"bias": "all"}, "bias: not a setting"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: expected one of"),
        ({"peft_type": "XLORA"}, "expected a peft_type"),
        ({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4, "r": None}, "PREFIX_TUNING cannot be merged"),
    ],
)
def test_an_adapter_that_cannot_be_merged_whole_is_refused(folder: Path, settings: dict[str, Any], part: str) -> None:
    saved(folder / "sft", **settings)
    problem = workspace.only(folder, OFFLINE.replace("{model: model}", "{model: model, adapter: sft}"))
    assert problem.where == "spec.yaml:2 policy.adapter"
    assert part in problem.message


def test_weights_that_would_be_unpickled_are_refused(folder: Path) -> None:
    (saved(folder / "sft", weights=False) / "adapter_model.bin").write_bytes(b"code")
    problem = workspace.only(folder, OFFLINE.replace("{model: model}", "{model: model, adapter: sft}"))
    assert "no adapter_model.safetensors (other formats can run code when read)" in problem.message


def test_an_adapter_that_is_not_there_is_refused(folder: Path) -> None:
    problem = workspace.only(folder, OFFLINE.replace("{model: model}", "{model: model, adapter: nowhere}"))
    assert (problem.where, "no such folder" in problem.message) == ("spec.yaml:2 policy.adapter", True)


def test_an_adapter_given_as_the_model_is_sent_to_its_place(folder: Path) -> None:
    saved(folder / "sft")
    problem = workspace.only(folder, OFFLINE.replace("{model: model}", "{model: sft}"))
    assert "is an adapter" in problem.message
    assert "this folder as policy.adapter" in problem.message
    saved(folder / "model")
    assert "holds a model and an adapter" in workspace.only(folder, OFFLINE).message


def test_the_adapter_is_part_of_the_identity(folder: Path) -> None:
    text = OFFLINE.replace("{model: model}", "{model: model, adapter: sft}")
    prints = [rounds.plan(workspace.loaded(folder, OFFLINE).spec, folder).policy.fingerprint]
    for content in (b"one", b"two"):
        (saved(folder / "sft") / "adapter_model.safetensors").write_bytes(content)
        prints.append(rounds.plan(workspace.loaded(folder, text).spec, folder).policy.fingerprint)
    assert len(set(prints)) == 3


EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("text", EXAMPLES)
def test_the_examples_in_the_docs_are_sound(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "find_spec", lambda name: object())
    saved(folder / "sft-adapter")
    raw = {**yaml.safe_load(OFFLINE), **yaml.safe_load(text)}
    if "policy" in raw:
        raw["policy"]["model"] = "model"
    values, invalid = validate(raw, folder)
    assert not invalid
    assert not preflight.check(values, folder).faults
