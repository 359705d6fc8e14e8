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
_OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, untied": ("Llama", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 16}),
    "mistral, sliding": ("Mistral", {"sliding_window": 4}),
    "qwen2, sliding": ("Qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}),
    "gelu": ("Llama", {"hidden_act": "gelu"}),
    "gemma2": ("Gemma2", {"head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0}),
    "granite": ("Granite", {"logits_scaling": 4.0, "tie_word_embeddings": False}),
    "cohere": ("Cohere", {"logit_scale": 0.25}),
}
LLAMA_LIKE = ("llama", "llama, untied", "qwen2", "qwen3", "mistral")
OTHERS = ("gpt2", "gemma2", "granite", "cohere", "mistral, sliding", "qwen2, sliding", "gelu")


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
        config = getattr(transformers, f"{family}Config")(**{**_SIZES, **own})
        made = getattr(transformers, f"{family}ForCausalLM")(config)
    made.set_attn_implementation("eager")
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return made.eval()


def eager(seed: int = 0) -> Any:
    """``tests.tiny``'s model as the stages load it on CPU."""
    made = tiny.model(seed)
    made.set_attn_implementation("eager")
    return made.eval()
