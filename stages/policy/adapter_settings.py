"""Which of peft's adapters Rondo trains and loads, and with which settings. Imports nothing heavy.

Settings that would read files, import modules, change the base's weights, or that are Rondo's to set are not listed
and therefore refused, in a spec as well as in a given adapter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.hints import hint
from stages.io.filenames import ADAPTER
from stages.policy.config import PROMPT_LEARNING, TYPES, unknown_type

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


_INITS = ("init_lora_weights", "init_weights", "init_ia3_weights")
_ALLOWED: Mapping[str, tuple[Any, ...]] = {
    # Others replace the base's weights, or need data or a tokenizer's files.
    **dict.fromkeys(_INITS, (True, False, "gaussian", "zero", None)),
    "prompt_tuning_init": ("RANDOM", "SAMPLE_VOCAB"),
}
_IDLE: Mapping[str, Any] = {"bias": "none", "megatron_core": "megatron.core", "qalora_group_size": 16}
"""Settings that are written to every adapter's configuration and do nothing at these values."""
_OWN = (
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers",
)  # fmt: skip
"""What an adapter's configuration says about itself and its base; never handed on."""


def faults(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Settings (``peft_type`` among them) that must not be handed to peft, each with what is wrong with it."""
    known = TYPES[settings["peft_type"]]
    found = []
    for name, value in settings.items():
        if name != "peft_type" and name not in known:
            what = f"not a setting of {settings['peft_type']} that Rondo hands to peft"
            found.append((name, f"{what}; {hint(name, known)}"))
        elif name in _ALLOWED and value not in _ALLOWED[name]:
            valid = ", ".join(json.dumps(v) for v in _ALLOWED[name] if v is not None)
            found.append((name, f"expected one of {valid}, got {value!r}"))
    if settings["peft_type"] in PROMPT_LEARNING and "num_virtual_tokens" not in settings:
        found.append(("peft_type", f"{settings['peft_type']} needs num_virtual_tokens; for example 16"))
    return found


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of a saved adapter, without what else peft writes.

    Raises:
        ValueError: the folder is not an adapter that Rondo can load safely and completely; the message says why.
    """
    file = folder / ADAPTER_CONFIG
    try:
        written: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is not an adapter in PEFT format: {ADAPTER_CONFIG}: {error}") from None
    if not isinstance(written, dict) or (problem := unknown_type(written.get("peft_type"))):
        raise ValueError(f"{file}: {problem if isinstance(written, dict) else 'not a JSON object'}")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ValueError(
            f"{folder} has no {ADAPTER_WEIGHTS} (other formats can run code when read); save the adapter with "
            "safe_serialization=True"
        )
    known = TYPES[written["peft_type"]]
    given = {
        name: value
        for name, value in written.items()
        if name not in _OWN and (name in known or (value and _IDLE.get(name) != value))
    }
    settings = {"peft_type": written["peft_type"], **given}
    if found := faults(settings):
        name, message = found[0]
        raise ValueError(
            f"{file}: {name}: {message}. If peft can merge it, merge it and give the merged folder as policy.model"
        )
    return settings


def prompt_adapter(policy: Path) -> Path | None:
    """The adapter that a policy artifact is incomplete without: virtual tokens. None where ``model`` is the whole
    policy, with any adapter merged."""
    file = policy / ADAPTER / ADAPTER_CONFIG
    return policy / ADAPTER if file.is_file() and is_prompt_learning(file) else None


def is_prompt_learning(config: Path) -> bool:
    """Whether an adapter's configuration is one of virtual tokens."""
    return json.loads(config.read_text(encoding="utf-8"))["peft_type"] in PROMPT_LEARNING
