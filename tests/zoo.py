"""Tiny random models of several architectures."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from tests import tiny

_SIZES: dict[str, Any] = {
    "vocab_size": 259, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0, "initializer_range": 0.2,
}  # fmt: skip
_EXPERTS: dict[str, Any] = {
    "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
}  # fmt: skip
_OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, untied": ("Llama", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 16}),
    "mistral, sliding": ("Mistral", {"sliding_window": 4}),
    "qwen2, sliding": ("Qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}),
    "gelu": ("Llama", {"hidden_act": "gelu"}),
    "gemma2": ("Gemma2", {
        "head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0,
        "sliding_window": 4,
    }),
    "gemma3": ("Gemma3", {
        "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    }),
    "phi3": ("Phi3", {"sliding_window": 4}),
    "olmo2": ("Olmo2", {}),
    "granite": ("Granite", {"logits_scaling": 4.0, "tie_word_embeddings": False}),
    "cohere": ("Cohere", {"logit_scale": 0.25}),
    "olmo": ("Olmo", {}),
    "inkling": ("Inkling", {**_EXPERTS, "n_routed_experts": 4, "head_dim": 8, "logits_mup_width_multiplier": 4.0}),
    "mixtral": ("Mixtral", _EXPERTS),
    "qwen3_moe": ("Qwen3Moe", {**_EXPERTS, "head_dim": 8}),
    "deepseek_v3": ("DeepseekV3", {
        **_EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1,
        "topk_group": 1, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8, "v_head_dim": 8, "head_dim": 8,
    }),
    "phimoe": ("Phimoe", _EXPERTS),
    "gpt_oss": ("GptOss", {**_EXPERTS, "head_dim": 8, "sliding_window": 4}),
    "llama4": ("Llama4", {
        **_EXPERTS, "num_experts_per_tok": 1, "head_dim": 8, "intermediate_size_mlp": 64, "attn_scale": 0.1,
        "interleave_moe_layer_step": 1,
    }),
    "mamba": ("Mamba", {"state_size": 8}),
    "jamba": ("Jamba", {
        **_EXPERTS, "mamba_d_state": 8, "mamba_dt_rank": 4, "attn_layer_period": 2, "attn_layer_offset": 1,
        "use_mamba_kernels": False,
    }),
}  # fmt: skip
LLAMA_LIKE = ("llama", "llama, untied", "qwen2", "qwen3", "mistral")
"""Run by Rondo's own path."""
MIXTURES = ("mixtral", "qwen3_moe", "deepseek_v3", "phimoe", "gpt_oss", "llama4", "inkling")
STATE_SPACES = ("mamba", "jamba")
OTHERS = (
    "gpt2", "gemma2", "gemma3", "phi3", "granite", "cohere", "mistral, sliding", "qwen2, sliding", "gelu", "olmo",
    "olmo2",
)  # fmt: skip
PADDED = ("llama4", "inkling", *STATE_SPACES)
"""What packed rows are not for."""
OWN_LAYERS = tuple(name for name in (*OTHERS, *MIXTURES) if name not in PADDED)
"""Run through their own layers, packed."""


def model(name: str, seed: int = 0) -> Any:
    """In evaluation, with plain attention; vectors of norms and biases are random too."""
    torch.manual_seed(seed)
    if name == "gpt2":
        config: Any = transformers.GPT2Config(
            vocab_size=259, n_embd=32, n_layer=2, n_head=4, n_positions=512, bos_token_id=1, eos_token_id=2,
            initializer_range=0.2,
        )  # fmt: skip
        made: Any = transformers.GPT2LMHeadModel(config)
    else:
        family, own = _OWN[name]
        named = f"{family}TextConfig" if family in ("Llama4", "Inkling", "Gemma3") else f"{family}Config"
        config = getattr(transformers, named)(**{**_SIZES, **own})
        made = getattr(transformers, f"{family}ForCausalLM")(config)
    return _varied(made)


def _varied(made: Any) -> Any:
    made.set_attn_implementation("eager")
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif parameter.std() < 0.1:  # some parts of a model have an initial size of their own
                parameter.copy_(0.2 * torch.randn_like(parameter))
        for name in sorted(made.state_dict().keys() - dict(made.named_parameters(remove_duplicate=False)).keys()):
            buffer = made.get_buffer(name)  # what is stored of a router besides its weights
            buffer.copy_(0.2 * torch.randn_like(buffer))
    return made.eval()


_ANY: dict[str, Any] = {
    **_SIZES, **_EXPERTS, "num_key_value_heads": 4, "head_dim": 8, "sliding_window": 4, "n_routed_experts": 4,
    "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "q_lora_rank": 16,
    "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "moe_num_experts": 4,
    "num_shared_experts": 1,
}  # fmt: skip


def of_family(model_type: str) -> Any:
    """A model of any family that has the usual settings, as ``model`` makes them."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **_ANY)
    return _varied(transformers.AutoModelForCausalLM.from_config(config))


def eager(seed: int = 0) -> Any:
    """``tests.tiny``'s model as the stages load it on CPU."""
    made = tiny.model(seed)
    made.set_attn_implementation("eager")
    return made.eval()
