"""Loading and saving policies: a folder ``model`` in Hugging Face format inside every policy artifact."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.core.templates import ChatEncoder
from stages.layout import MODEL


def load_model(path: Path, device: torch.device) -> Any:
    """A policy's weights in float32 on a device.

    On CPU attention runs as plain matrix products: in bfloat16 torch's fused CPU attention gives a sequence
    slightly different values next to different neighbours, plain products do not. So reference and policy agree
    bit for bit at step 0, and it is no slower.
    """
    attention = "eager" if device.type == "cpu" else "sdpa"
    model = AutoModelForCausalLM.from_pretrained(
        path / MODEL,
        dtype=torch.float32,
        attn_implementation=attention,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    return model.to(device)


@lru_cache(maxsize=2)
def load_tokenizer(path: Path) -> Any:
    """A policy's tokenizer, with its chat template."""
    return AutoTokenizer.from_pretrained(path / MODEL, local_files_only=True, trust_remote_code=False)


def load_encoder(path: Path) -> ChatEncoder:
    return ChatEncoder(load_tokenizer(path))


def stored_dtype(path: Path) -> torch.dtype:
    """The precision in which a policy's weights are stored; what is trained from it is stored likewise."""
    from transformers import AutoConfig

    dtype = AutoConfig.from_pretrained(path / MODEL, local_files_only=True, trust_remote_code=False).dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def device_of_worker() -> torch.device:
    """The GPU that Ray gave this process, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
