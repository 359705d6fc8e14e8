"""How large a model is: read from its ``config.json`` and, where they are at hand, from the headers of its weights.

Nothing is loaded, and nothing heavy is imported.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stages.core.forward.config import LLAMA_LIKE
from stages.policy.files import CONFIG, weights_header

_BIASED = ("qwen2",)
"""Families whose queries, keys and values have a bias without their configuration saying so."""
_NORMED = ("qwen3",)
"""Families that normalise queries and keys."""
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size")
_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1}
NOT_HERE = "not known: the model's config.json is not on this machine"
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.\d+\.")
_EMBEDDING = re.compile(r"(?:embed_tokens|wte|word_embeddings)\.weight$")
_HEAD = re.compile(r"(?:lm_head|embed_out)\.weight$")


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes. Weights are numbers of parameters; ``layer`` and ``linear`` are those of one decoder layer,
    all of them and those of its matrix products. ``head`` is 0 where it shares the embedding's weights."""

    family: str
    width: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    head_width: int
    layer: int
    linear: int
    embedding: int
    head: int
    other: int
    served: int
    """Bytes per weight in the precision that the configuration names."""
    stored: int
    """Bytes per weight in the model's files."""
    packs: bool
    """Whether it is run by Rondo's own forward pass."""

    @property
    def weights(self) -> int:
        return self.layers * self.layer + self.embedding + self.head + self.other

    @property
    def queries(self) -> int:
        """Width of all queries together."""
        return self.heads * self.head_width

    @property
    def keys(self) -> int:
        """Width of all keys together, and of all values."""
        return self.key_heads * self.head_width

    @property
    def vocabulary(self) -> int:
        return self.embedding // self.width

    def products(self) -> dict[str, tuple[int, int]]:
        """A layer's matrix products by name: width of what goes in and of what comes out."""
        return {
            "q_proj": (self.width, self.queries), "k_proj": (self.width, self.keys), "v_proj": (self.width, self.keys),
            "o_proj": (self.queries, self.width), "gate_proj": (self.width, self.inner),
            "up_proj": (self.width, self.inner), "down_proj": (self.inner, self.width),
        }  # fmt: skip


def of_folder(folder: Path) -> Shape | str:
    """The shape of the model in a folder, or why it is not known. Weights that are there are counted exactly."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return NOT_HERE
    shape = of_config(config if isinstance(config, dict) else {})
    return shape if isinstance(shape, str) else counted(shape, headers(folder))


def of_config(config: Mapping[str, Any]) -> Shape | str:
    """The shape that a ``config.json`` describes, counted as for Llama, or why it is not known."""
    found: dict[str, Any] = {**config, **(config.get("text_config") or {})}
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    if any(found.get(name) for name in _EXPERTS):
        return "not known: the model is a mixture of experts"
    if lacking := [name for name in names if not isinstance(found.get(name), int)]:
        return f"not known: the model's config.json does not say {', '.join(lacking)}"
    width, inner, layers, heads, vocabulary = (found[name] for name in names)
    family, key_heads = str(found.get("model_type", "")), found.get("num_key_value_heads") or heads
    head_width = found.get("head_dim") or width // heads
    linear = 2 * width * head_width * (heads + key_heads) + 3 * width * inner
    qkv = head_width * (heads + 2 * key_heads)
    biases = qkv + width if found.get("attention_bias") else qkv if family in _BIASED else 0
    biases += 2 * inner + width if found.get("mlp_bias") else 0
    normed = 2 * head_width if family in _NORMED else 0
    dtype = str(found.get("dtype") or found.get("torch_dtype") or "float32")
    size = 4 if "32" in dtype else 1 if "8" in dtype else 2
    window = found.get("sliding_window") and found.get("use_sliding_window", True)
    return Shape(
        family, width, inner, layers, heads, key_heads, head_width,
        layer=linear + biases + normed + 2 * width, linear=linear,
        embedding=vocabulary * width, head=0 if found.get("tie_word_embeddings") else vocabulary * width, other=width,
        served=size, stored=size, packs=family in LLAMA_LIKE and not window,
    )  # fmt: skip


def headers(folder: Path) -> dict[str, Any]:
    """What the headers of a folder's safetensors files say of each weight; empty where there are none."""
    found: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= weights_header(file)
    return found


def counted(shape: Shape, weights: Mapping[str, Any]) -> Shape:
    """The shape with its weights as the files' headers count them; as it is where these do not have them all."""
    sizes = {"layer": 0, "embedding": 0, "head": 0, "other": 0}
    by_bytes: dict[int, int] = {}
    for name, about in weights.items():
        try:
            number, size = math.prod(about["shape"]), _BYTES.get(about["dtype"], 2)
        except (KeyError, TypeError):
            return shape
        kind = "layer" if _LAYER.search(name) else "embedding" if _EMBEDDING.search(name) else "other"
        sizes["head" if _HEAD.search(name) else kind] += number
        by_bytes[size] = by_bytes.get(size, 0) + number
    if not sizes["layer"] or not sizes["embedding"]:
        return shape
    tied = not shape.head  # a file may hold the shared weights twice
    return replace(
        shape, layer=sizes["layer"] // shape.layers, embedding=sizes["embedding"], head=0 if tied else sizes["head"],
        other=sizes["other"], stored=max(by_bytes, key=lambda size: by_bytes[size]),
    )  # fmt: skip
