"""What is particular to a family of models (``model_type`` in config.json): which layers an adapter can be put on, and
which models cannot be trained at all. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.policy.config import PROMPT_LEARNING

_MIXTRAL = ("gate", "w1", "w2", "w3")
_QWEN = ("gate", "gate_proj", "up_proj", "down_proj")
EXPERT_NAMES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("minimax", "minimax_m2", "mixtral"), _MIXTRAL),
    **dict.fromkeys(
        (
            "afmoe", "cohere2_moe", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1", "ernie4_5_moe",
            "exaone_moe", "flex_olmo", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "hunyuan_v1_moe", "longcat_flash",
            "mellum", "olmoe", "qwen3_moe", "qwen3_next", "solar_open",
        ),
        _QWEN,
    ),
}  # fmt: skip
"""Mixtures of experts in which peft takes these module names for the experts' stacked parameters (and the router), as
they were called before transformers stacked them; a dense layer of the same name is then out of its reach."""
ROUTERS = ("router", "gate", "shared_expert_gate")
"""Parts of a mixture that decide which expert sees a token. By default they stay as they are, like the experts."""
_PAST_PEFT = ("out_proj", "conv1d")
_MAMBA = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
"""State-space models for which peft refuses a LoRA on the layers above: fused kernels read their weights directly."""
_WITHOUT_PREFIX = (
    *_MAMBA, "bamba", "granitemoehybrid", "jamba", "kimi_linear", "lfm2", "lfm2_moe", "minimax", "olmo_hybrid",
    "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next", "recurrent_gemma", "rwkv", "xlstm", "zamba", "zamba2",
    "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3", "youtu",
)  # fmt: skip
"""Models with layers that keep a state, or compressed keys and values, where a prefix is made of plain ones."""
_WITHOUT_PROMPTS = ("dbrx", "kimi_linear", "llama4_text", "xlstm")
"""Models in front of which peft cannot put virtual tokens."""
_ROUTERS_ARE_LINEAR = ("llama4_text", "phimoe")
"""Mixtures whose routers look like linear layers to peft and give back several tensors."""
_BIDIRECTIONAL = (
    "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert",
    "modernbert", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm", "xlm-roberta",
    "xlm-roberta-xl", "xlnet", "xmod",
)  # fmt: skip
_OWN_HEAD = ("modernbert-decoder",)
"""More than a product stands between these models' hidden states and their logits."""


def untrainable(config: Mapping[str, Any]) -> str | None:
    """Why a model with this config.json cannot be trained; None if nothing is known against it."""
    family = config.get("model_type")
    if config.get("is_encoder_decoder"):
        return f"{family} has an encoder and a decoder; give a causal language model (decoder only)"
    if family in _BIDIRECTIONAL:
        return f"{family} reads text in both directions; give a causal language model"
    if family in _OWN_HEAD:
        return f"{family} computes its logits in a way of its own; give another causal language model"
    return None


def left_out(family: str | None) -> frozenset[str]:
    """Names, anywhere in a linear layer's path, of what an adapter is not put on unless it is asked for.

    Mamba's ``dt_proj`` is among them, whose weights are read past any adapter.
    """
    refused = _PAST_PEFT if family in _MAMBA else ()
    unread = ("shared_experts",) if family == "laguna" else ()  # peft renames these, and does not find them again
    return frozenset((*ROUTERS, "dt_proj", *refused, *unread, *EXPERT_NAMES.get(family or "", ())))


def misfit(family: str | None, settings: Mapping[str, Any]) -> tuple[str, str] | None:
    """Which of peft's settings (``peft_type`` among them) cannot work on models of this family, and why."""
    peft_type, targets = settings["peft_type"], settings.get("target_modules")
    if peft_type in PROMPT_LEARNING:
        prefix = peft_type == "PREFIX_TUNING" and family in _WITHOUT_PREFIX
        if prefix or family in _WITHOUT_PROMPTS:
            return "peft_type", f"{peft_type} does not work with the attention of {family}; use LORA"
        return None
    named = [targets] if isinstance(targets, str) else list(targets or ())
    if refused := _among(named, ("dt_proj", *(_PAST_PEFT if family in _MAMBA and peft_type == "LORA" else ()))):
        return "target_modules", f"{refused}: {family} reads its weights past the adapter; leave it out"
    if family in _MAMBA and peft_type == "LORA" and targets == "all-linear":
        return "target_modules", f"peft refuses some linear layers of {family}; leave target_modules out"
    if family in _ROUTERS_ARE_LINEAR and targets == "all-linear":
        return "target_modules", f"all-linear takes the routers of {family} for linear layers; leave target_modules out"
    return _experts_misfit(family, settings, named)


def _experts_misfit(family: str | None, settings: Mapping[str, Any], named: list[str]) -> tuple[str, str] | None:
    """What is against an adapter on the stacked parameters of experts, if one is asked for."""
    names = EXPERT_NAMES.get(family or "", ())
    expert = "all-linear" if named == ["all-linear"] and names else _among(named, names)
    if expert and settings["peft_type"] != "LORA":
        return "target_modules", f"{expert}: only LORA can be put on the experts and the router of {family}"
    branches = [name for name in names if name in ("w1", "w3", "gate_proj", "up_proj")]
    given = [name for name in branches if _among(named, (name,))]
    if len(given) == 1:
        return "target_modules", f"{family} holds {' and '.join(branches)} in one parameter; name both or none"
    what = expert or next(iter(settings.get("target_parameters") or ()), None)
    for name in ("lora_dropout", "use_dora", "fan_in_fan_out"):
        if what and settings.get(name):
            return name, f"a LoRA on parameters such as experts ({what}) does without it; leave out one of the two"
    return None


def _among(named: list[str], names: tuple[str, ...]) -> str | None:
    """The first given target that means a module with one of these names."""
    return next((target for target in named if target.rpartition(".")[2] in names), None)
