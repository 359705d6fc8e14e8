"""Mixtures of experts and state-space models: trained whole and with an adapter, and what is refused beforehand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.base import StageError
from stages.core.forward.logprobs import ResponseLogprobs
from stages.io.filenames import ADAPTER, MODEL
from stages.policy import families
from stages.policy.adapter_settings import read_settings
from stages.policy.adapters import attach, wrap
from stages.policy.load import load_model, load_policy
from stages.train import policy as policies
from stages.train.config import LoraConfig, TrainConfig
from stages.train.loop import train_steps
from stages.train.worker import Worker
from tests import zoo
from tests.memory import MemoryData, random_pairs, score
from tests.unit import workspace
from tests.unit.workspace import OFFLINE

CPU = torch.device("cpu")
PAIRS = random_pairs(4, longest=12)
FULL, LORA = TrainConfig(), TrainConfig(lora=LoraConfig(rank=4))
DORA = TrainConfig(lora=LoraConfig(rank=4, dora=True, dropout=0.1))
EXPERTS = TrainConfig(
    peft={"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"],
          "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
)  # fmt: skip
NAMED = TrainConfig(
    peft={"peft_type": "LORA", "r": 2, "target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"]}
)
CASES = {
    **{f"{name}, full": (name, FULL) for name in ("mixtral", "mamba")},
    **{f"{name}, lora": (name, LORA) for name in (*zoo.MIXTURES, *zoo.STATE_SPACES)},
    **{f"{name}, dora": (name, DORA) for name in ("qwen3_moe", "mamba")},
    **{f"{name}, experts": (name, EXPERTS) for name in ("mixtral", "gpt_oss")},
    "qwen3_moe, named experts": ("qwen3_moe", NAMED),
}


@torch.no_grad()
def scores(model: Any) -> torch.Tensor:
    return score(model.eval(), PAIRS, "padded", "fp32")


def trained(config: TrainConfig, initial: Path) -> Any:
    """A policy after two steps; the first one starts at the reference."""
    config = config.model_copy(update={"precision": "fp32", "batch_size": 2, "learning_rate": 0.01, "warmup": 0.0})
    data = MemoryData(PAIRS).scored_by(load_model(initial, CPU).eval(), "padded")
    policy = policies.build_policy(config, initial)
    model = policies.without_dropout(ResponseLogprobs(policy, "padded", "fp32"))
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=0.01)
    rows = list(train_steps(model, optimizer, data, config, Worker(), "padded"))
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    return policy


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys")  # peft's own, which it does use
@pytest.mark.parametrize("case", CASES)
def test_a_policy_starts_at_the_reference_and_is_stored_as_it_was_trained(case: str, tmp_path: Path) -> None:
    name, config = CASES[case]
    initial, folder = tmp_path / "initial", tmp_path / "trained"
    zoo.model(name).save_pretrained(initial / MODEL)
    policy = trained(config, initial)
    idle = [n for n, p in policy.named_parameters() if "lora_B" in n and not p.any()]
    assert not idle, "no gradient reaches these"
    expected = scores(policy)
    assert not torch.allclose(expected, scores(load_model(initial, CPU)), atol=0.01)
    policies.save_policy(policy, config, initial, folder)
    torch.testing.assert_close(scores(load_policy(folder, CPU)), expected, atol=1e-4, rtol=1e-5)
    if config is not FULL:
        again = attach(load_model(initial, CPU), folder / ADAPTER)
        torch.testing.assert_close(scores(again), expected, atol=1e-4, rtol=1e-5)
        assert bool(read_settings(folder / ADAPTER).get("target_parameters")) == ("experts" in case)


@pytest.mark.parametrize("name", [*zoo.MIXTURES, *zoo.STATE_SPACES])
def test_by_default_no_router_and_no_expert_is_adapted(name: str) -> None:
    adapted = wrap(zoo.model(name), {"peft_type": "LORA", "r": 2})
    on = [n.split(".lora_A")[0].split(".") for n, p in adapted.named_parameters() if "lora_A" in n]
    assert on
    assert not [path for path in on if {*families.ROUTERS, "experts", "lm_head"} & {*path}]


@pytest.mark.parametrize("peft_type", ["IA3", "LOHA"])
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "mamba"])
def test_other_adapters_find_their_places_too(name: str, peft_type: str) -> None:
    adapted = wrap(zoo.model(name), {"peft_type": peft_type})
    torch.testing.assert_close(scores(adapted), scores(zoo.model(name)), atol=1e-4, rtol=1e-5)


def test_the_names_taken_for_experts_are_those_of_the_installed_peft() -> None:
    from peft.utils import transformers_weight_conversion as conversion

    found = {
        family: tuple(sorted(conversion._MOE_TARGET_MODULE_MAPPING[kind]))
        for family, kind in conversion._MODEL_TO_CONVERSION_PATTERN.items()
        if kind in conversion._MOE_TARGET_MODULE_MAPPING
    }
    assert {family: tuple(sorted(names)) for family, names in families.EXPERT_NAMES.items()}.items() <= found.items()


@pytest.mark.parametrize(
    ("family", "train", "where", "part"),
    [
        ("mamba", "lora: {target_modules: [in_proj, out_proj]}", "lora.target_modules", "out_proj: mamba reads its"),
        ("mamba2", "peft: {peft_type: LORA, target_modules: all-linear}", "peft.target_modules", "peft refuses some"),
        ("jamba", "lora: {target_modules: [mamba.dt_proj]}", "lora.target_modules", "mamba.dt_proj: jamba reads its"),
        ("mamba", "peft: {peft_type: PREFIX_TUNING, num_virtual_tokens: 2}", "peft.peft_type", "attention of mamba"),
        ("phimoe", "peft: {peft_type: LORA, target_modules: all-linear}", "peft.target_modules", "the routers of phi"),
        ("mixtral", "lora: {target_modules: [w1, w2, w3], dropout: 0.1}", "lora.dropout", "experts (w1) does without"),
        ("mixtral", "lora: {target_modules: [w1, w2]}", "lora.target_modules", "holds w1 and w3 in one parameter"),
        ("qwen3_moe", "lora: {target_modules: [mlp.gate], dora: true}", "lora.dora", "experts (mlp.gate) does without"),
        ("olmoe", "peft: {peft_type: LOHA, target_modules: all-linear}", "peft.target_modules", "only LORA can be put"),
        (
            "gpt_oss",
            "peft: {peft_type: LORA, target_parameters: [experts.down_proj], lora_dropout: 0.1}",
            "peft.lora_dropout",
            "experts (experts.down_proj) does without",
        ),
    ],
)
def test_an_adapter_that_does_not_work_on_the_family_is_refused(
    family: str, train: str, where: str, part: str, tmp_path: Path
) -> None:
    folder = workspace.make(tmp_path)
    workspace.loaded(folder, OFFLINE + "train: {lora: {rank: 4}}\n")
    (folder / "model" / "config.json").write_text(json.dumps({"model_type": family}))
    problem = workspace.only(folder, OFFLINE + f"train: {{{train}}}\n")
    assert problem.where == f"spec.yaml:4 train.{where}"
    assert part in problem.message


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({"model_type": "t5", "is_encoder_decoder": True}, "t5 has an encoder and a decoder; give a causal language"),
        ({"model_type": "bert"}, "bert reads text in both directions; give a causal language model"),
        ({"model_type": "modernbert-decoder"}, "computes its logits in a way of its own"),
    ],
)
def test_a_model_that_is_no_causal_language_model_is_refused(config: dict[str, Any], part: str, tmp_path: Path) -> None:
    folder = workspace.make(tmp_path)
    (folder / "model" / "config.json").write_text(json.dumps(config))
    problem = workspace.only(folder, OFFLINE)
    assert problem.where == "spec.yaml:2 policy.model"
    assert part in problem.message


def test_what_only_the_model_shows_is_refused_when_the_adapter_is_put_on_it() -> None:
    with pytest.raises(StageError, match="out_proj: mamba reads its weights"):
        wrap(zoo.model("mamba"), {"peft_type": "LORA", "target_modules": ["out_proj"]})
    with pytest.raises(StageError, match=r"peft cannot put this adapter on the model: .*nowhere"):
        wrap(zoo.model("mixtral"), {"peft_type": "LORA", "target_modules": ["nowhere"]})
