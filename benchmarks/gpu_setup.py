"""What both sides of ``gpu`` begin with: random models, pairs of random tokens, the card and what it can do.

Both sides make the same model and the same pairs of the same numbers; nothing is read or downloaded.
"""

from __future__ import annotations

import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from benchmarks.limit import Shape, operations
from benchmarks.pairs import drawn
from stages.core.tokens.pair import EncodedPair

END = 0
"""The id that ends every answer, and pads on TRL's side."""
LAYOUTS = ("shared", "packed", "padded")
MODES = ("full", "lora")
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}

LENGTHS: dict[str, dict[str, tuple[float, float, float, float]]] = {
    "realistic": {"prompt": (300, 0.6, 60, 900), "chosen": (300, 0.5, 60, 800), "rejected": (270, 0.5, 60, 800)},
    "long": {"prompt": (1750, 0.08, 1500, 2000), "chosen": (190, 0.3, 100, 300), "rejected": (190, 0.3, 100, 300)},
}
"""Tokens of each part as in ``pairs``: median, spread and bounds."""


@dataclass(frozen=True)
class Size:
    """A model, and what is trained on it."""

    model: Mapping[str, int]
    small: Mapping[str, int]
    """The model that the losses are compared with."""
    shorter: int
    """What the lengths are divided by."""
    batch_sizes: Mapping[str, int]
    """Pairs of an optimizer step."""
    micro_batch_tokens: int
    square: int
    """The side of the matrices that the device's rate is measured with."""
    expected: float
    """Seconds that a configuration is expected to take before one was measured."""


def _model(width: int, layers: int, inner: int, heads: int, keys: int, vocabulary: int) -> dict[str, int]:
    return {
        "hidden_size": width, "num_hidden_layers": layers, "intermediate_size": inner, "num_attention_heads": heads,
        "num_key_value_heads": keys, "vocab_size": vocabulary,
    }  # fmt: skip


_TINY = _model(64, 2, 128, 4, 2, 512)
SIZES = {
    "1b": Size(
        _model(2048, 16, 8192, 32, 8, 128_256), _model(256, 4, 512, 4, 2, 2048), 1, {"realistic": 32, "long": 16},
        16_384, 8192, 30.0,
    ),
    "tiny": Size(_TINY, _TINY, 16, {"realistic": 4, "long": 2}, 512, 256, 0.0),
}  # fmt: skip


def random_model(
    shape: Mapping[str, int], device: torch.device, dtype: torch.dtype = torch.float32, attention: str = "sdpa"
) -> Any:
    """A Llama of random weights that is made on the device; always the same one there."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        **shape, max_position_embeddings=4096, tie_word_embeddings=True, pad_token_id=END, bos_token_id=None,
        eos_token_id=END, attn_implementation=attention,
    )  # fmt: skip
    with torch.device(device):
        model = LlamaForCausalLM(config)
    for parameter in model.parameters():  # the rotary angles stay float32
        parameter.data = parameter.data.to(dtype)
    return model.eval()


def random_pairs(lengths: str, count: int, vocabulary: int, shorter: int = 1) -> list[EncodedPair]:
    """Pairs of random tokens; a pair depends on its number alone."""
    pairs = []
    for index in range(count):
        draw = random.Random(f"{lengths}/{index}")
        ids = {}
        for name, tokens in drawn(draw, LENGTHS[lengths]):
            ids[name] = draw.choices(range(1, vocabulary), k=max(3, round(tokens / shorter)))
        pairs.append(EncodedPair(str(index), ids["prompt"], [*ids["chosen"], END], [*ids["rejected"], END]))
    return pairs


def tokens_of(pairs: Sequence[EncodedPair]) -> int:
    """Tokens of all sequences: a prompt counts for both of its answers, whatever a layout makes of it."""
    return sum(2 * len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs)


def needed(shape: Mapping[str, int], pairs: Sequence[EncodedPair], mode: str) -> float:
    """Floating-point operations that training on these pairs needs, however it is done (``limit``)."""
    own = Shape(
        shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"], shape["vocab_size"],
        shape["hidden_size"], shape["hidden_size"] // shape["num_attention_heads"] * shape["num_key_value_heads"],
    )  # fmt: skip
    return sum(
        operations(own, len(p.prompt_ids), len(p.chosen_ids), len(p.rejected_ids), mode == "lora") for p in pairs
    )


_DENSE_BF16 = {
    "H100 NVL": 835, "H100 PCIe": 756, "H100": 989, "H200": 989, "GH200": 989, "B200": 2250, "A100": 312, "A800": 312,
    "H800": 989, "A10G": 70, "A10": 125, "A30": 165, "A40": 150, "L40S": 362, "L40": 181, "L4": 121,
    "RTX 4090": 165, "RTX 3090": 71,
}  # fmt: skip
"""What the makers say of bf16 products without sparsity, in TFLOP/s. A name is looked for in the device's, the longer
ones first."""


def listed_peak(name: str) -> float | None:
    """TFLOP/s of a device by its name."""
    found = next((part for part in sorted(_DENSE_BF16, key=len, reverse=True) if part in name), None)
    return None if found is None else float(_DENSE_BF16[found])


def measured_peak(size: Size, device: torch.device, seconds: float = 0.3) -> float:
    """Operations a second of bf16 products: the faster of a large square one and the model's widest."""
    square = (size.square, size.square, size.square)
    own = (size.micro_batch_tokens, size.model["intermediate_size"], size.model["hidden_size"])
    return max(_rate(*shape, device, seconds) for shape in (square, own))


def _rate(rows: int, outputs: int, inputs: int, device: torch.device, seconds: float) -> float:
    x, w = (torch.randn(*s, device=device, dtype=torch.bfloat16) for s in ((rows, inputs), (outputs, inputs)))
    times: list[float] = []
    end = clock(device) + seconds
    while time.perf_counter() < end or len(times) < 4:
        started = clock(device)
        for _ in range(5):
            x @ w.t()
        times.append((clock(device) - started) / 5)
    return 2 * rows * outputs * inputs / statistics.median(times[1:])


def clock(device: torch.device) -> float:
    """The time when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def reset_peak(device: torch.device) -> None:
    """Forget the highest memory so far, and give back what nothing holds any more."""
    import gc

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> float | None:
    """GiB that tensors held on the device at most since ``reset_peak``; None for a CPU."""
    return round(torch.cuda.max_memory_allocated(device) / 2**30, 3) if device.type == "cuda" else None


def card(device: torch.device) -> dict[str, Any]:
    """What is measured on."""
    if device.type != "cuda":
        return {
            "type": device.type,
            "name": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
        }
    properties = torch.cuda.get_device_properties(device)
    return {
        "type": device.type, "name": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1),
        "capability": f"{properties.major}.{properties.minor}", "multiprocessors": properties.multi_processor_count,
        "driver": _driver(), "cuda": torch.version.cuda,
    }  # fmt: skip


def _driver() -> str | None:
    with suppress(OSError, subprocess.SubprocessError):
        program = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        lines = subprocess.run(program, capture_output=True, text=True, timeout=20, check=True).stdout.split("\n")
        return lines[0].strip() or None
    return None


def versions() -> dict[str, str | None]:
    """Of what the figures depend on; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("torch", "triton", "transformers", "peft", "trl", "liger-kernel", "flash-attn"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def compiled() -> dict[str, int]:
    """What torch has compiled in this process so far."""
    if "torch._dynamo.utils" not in sys.modules:
        return dict.fromkeys(("frames", "graphs", "graph_breaks"), 0)
    from torch._dynamo.utils import counters

    return {
        "frames": counters["frames"]["total"], "graphs": counters["stats"]["unique_graphs"],
        "graph_breaks": sum(counters["graph_break"].values()),
    }  # fmt: skip
