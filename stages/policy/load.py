"""Loading and saving policies: a folder ``model`` in Hugging Face format inside every policy artifact."""

from __future__ import annotations

import json
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.base import StageError
from stages.core.forward.config import Precision
from stages.core.tokens.templates import ChatEncoder
from stages.io.filenames import CHAT, MODEL
from stages.io.parts import has_gpu
from stages.policy.adapter_settings import prompt_adapter
from stages.policy.adapters import attach
from stages.policy.hollow import hollow
from stages.policy.tokenizer import read_tokenizer

_WITHOUT_BF16 = ("DEFAULT", "NO AVX", "AVX2")
"""What torch calls the instruction sets of CPUs that have none for bfloat16."""


def load_policy(path: Path, device: torch.device, trainable: bool = False, frozen: Precision | None = None) -> Any:
    """A policy as it behaves, float32: its ``model``, and before it the virtual tokens of its ``adapter`` where it is
    made of such (any other adapter is merged into ``model``). ``trainable`` is for going on with the tokens' training;
    ``frozen``, for a policy that is not trained at all, is the precision of its products.
    """
    if (adapter := prompt_adapter(path)) is not None:
        return attach(load_model(path, device), adapter, trainable)
    return load_model(path, device) if frozen is None else load_frozen(path, device, frozen)


def load_frozen(path: Path, device: torch.device, precision: Precision) -> Any:
    """A policy's model, not to be trained, each weight in the precision that it is used in
    (:meth:`stages.policy.hollow.Hollow.as_used`), and at no time in another."""
    made = hollow(path / MODEL, attention_of_worker())
    if made is None:
        return load_model(path, device).requires_grad_(False)
    made.model.requires_grad_(False)
    made.as_used(precision)
    made.fill(device)
    return made.model.to(device)


def attention_of_worker() -> str:
    """How a model attends where it runs by its own forward pass.

    On CPU as plain matrix products: in bfloat16 torch's fused CPU attention gives a sequence slightly different values
    next to different neighbours, plain products do not. So reference and policy agree bit for bit at step 0, and it is
    no slower. A model may be loaded on the CPU and moved to a GPU.
    """
    return "eager" if device_of_worker().type == "cpu" else "sdpa"


def load_model(path: Path, device: torch.device, quantization: str | None = None, precision: Precision = "bf16") -> Any:
    """A policy's weights in float32 on a device; with ``quantization`` the linear layers hold 4 or 8 bits per weight
    (bitsandbytes: NF4 with products in ``precision``, arXiv:2305.14314, or LLM.int8, arXiv:2208.07339).

    Raises:
        StageError: some weights are not in the files; they would be random.
    """
    model, found = AutoModelForCausalLM.from_pretrained(
        path / MODEL,
        output_loading_info=True,
        dtype=torch.float32,
        attn_implementation=attention_of_worker(),
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        **(_quantized(quantization, product_precision(precision, device), device) if quantization else {}),
    )
    if missing := sorted(found["missing_keys"]):
        raise StageError(f"{len(missing)} weights are not in the model's files, the first is {missing[0]}")
    return model if quantization else model.to(device)


def _quantized(quantization: str, precision: str, device: torch.device) -> dict[str, Any]:
    from transformers import BitsAndBytesConfig

    if quantization == "8bit":
        settings = BitsAndBytesConfig(load_in_8bit=True)
    else:
        compute = torch.bfloat16 if precision == "bf16" else torch.float32
        settings = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
        )
    return {"quantization_config": settings, "device_map": {"": device}}


@lru_cache(maxsize=2)
def load_tokenizer(path: Path) -> Any:
    """A policy's tokenizer, with its chat template."""
    if (path / MODEL / "tokenizer.json").is_file():
        return read_tokenizer(path / MODEL)
    return AutoTokenizer.from_pretrained(path / MODEL, local_files_only=True, trust_remote_code=False)


@lru_cache(maxsize=2)
def load_encoder(path: Path) -> ChatEncoder:
    """One object a process: what it makes of the tokenizer takes a second or so for a large one."""
    chat = json.loads((path / CHAT).read_text(encoding="utf-8")) if (path / CHAT).is_file() else {}
    return ChatEncoder(load_tokenizer(path), date.fromisoformat(chat["date"]) if "date" in chat else None)


def stop_tokens(path: Path) -> list[int]:
    """Ids at which an answer ends: the chat template's end of turn, the tokenizer's end of sequence, and what the
    model's own files name (``eos_token_id``, one or several)."""
    named: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        file = path / MODEL / name
        found = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
        named |= set(found if isinstance(found, list) else [] if found is None else [found])
    return sorted(load_encoder(path).ends | named)


def device_of_worker() -> torch.device:
    """The GPU that Ray gave this process, else the CPU. With its number: the thread that reads pairs ahead would else
    take the machine's first.

    Raises:
        StageError: Ray gave it a GPU that torch cannot use; on the CPU it would take days and nobody would know why.
    """
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if has_gpu():
        raise StageError(f"torch {torch.__version__} cannot use the GPU that resources ask for: {_why_no_gpu()}")
    return torch.device("cpu")


def _why_no_gpu() -> str:
    """Torch's own reason, and what to do about it."""
    if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
        return "it was built for CPUs; install a build for CUDA, or leave gpus out"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
        if "driver" in reason:
            return f"{reason}; update the driver, or install a torch that is built for an earlier CUDA"
        return f"{reason}; see whether nvidia-smi shows it, or leave gpus out"
    return "it sees none; see whether nvidia-smi shows it, or leave gpus out"


def product_precision(precision: Precision, device: torch.device) -> Precision:
    """The precision that products are worked out in on a device: ``bf16`` needs instructions for it. A CPU without them
    takes 60 times as long for bfloat16 as for float32 (measured with AVX2), a GPU (before Ampere) converts every number
    twice; float32 is no less exact.
    """
    if device.type == "cpu":
        return "fp32" if torch.backends.cpu.get_cpu_capability() in _WITHOUT_BF16 else precision
    return precision if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
