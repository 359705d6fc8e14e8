"""Adapters on a head that shares its weights with the embedding: to merge one would change the other as well."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.spec.model_path import adapter_path, local_path
from pipelines.spec.problems import Fault
from stages.policy.adapter_settings import read_settings
from stages.policy.config import ModelSource
from stages.policy.files import CONFIG, weights_header
from stages.train.config import TrainConfig

_HEADS = ("lm_head", "embed_out")
_ENDS = (*_HEADS, "embed_tokens", "wte", "embed_in", "word_embeddings")
"""What families call the head and the embedding."""


def faults(train: TrainConfig | None, policy: ModelSource | None, base: Path) -> Iterator[Fault]:
    """Adapters that cannot be merged into the policy, as far as its folder's files show."""
    if policy is None:
        return
    try:
        model = local_path(policy, base)
        given = read_settings(adapter_path(policy.adapter, base)) if policy.adapter is not None else {}
    except (ValueError, OSError, RuntimeError):
        return  # is said elsewhere
    asked: list[tuple[tuple[str, ...], Any]] = [(("policy", "adapter"), given.get("target_modules"))]
    if train is not None and train.lora is not None:
        asked.append((("train", "lora", "target_modules"), train.lora.target_modules))
    if train is not None and train.peft is not None:
        asked.append((("train", "peft", "target_modules"), train.peft.get("target_modules")))
    for path, targets in asked:
        named = _named(targets)
        if named and model is not None and model.is_dir() and _tied(model):
            yield Fault(
                path,
                f"{named} shares its weights with the other end of the model (tie_word_embeddings): merging an adapter "
                "on it would change both; leave it out",
            )


def _named(targets: Any) -> str | None:
    """The head or embedding that is among an adapter's targets: names, or one regular expression for whole names."""
    if isinstance(targets, str):
        places = [name for end in _ENDS for name in (end, f"model.{end}", f"transformer.{end}")]
        return next((name for name in places if re.fullmatch(targets, name)), None)
    return next((name for name in targets or () if str(name).rpartition(".")[2] in _ENDS), None)


def _tied(model: Path) -> bool:
    """Whether head and embedding are one, by the configuration, or else since there are no weights of a head."""
    file = model / CONFIG
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if "tie_word_embeddings" in config:
        return bool(config["tie_word_embeddings"])
    names = [name for weights in model.glob("*.safetensors") for name in weights_header(weights)]
    return bool(names) and not any(name.endswith(tuple(f"{head}.weight" for head in _HEADS)) for name in names)
