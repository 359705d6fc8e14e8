"""Reward models on disk: sequence-classification models with one output, as AutoModelForSequenceClassification reads
them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from stages.base import StageError
from stages.core.forward.config import Precision
from stages.core.forward.logprobs import freeze
from stages.core.forward.scalar_head import make_head_exact
from stages.io.filenames import MODEL
from stages.policy.load import device_of_worker, product_precision

_ONLY_LOCAL = {"local_files_only": True, "trust_remote_code": False}


def load_reward_model(path: Path, device: torch.device) -> Any:
    """The sequence-classification model of an artifact, float32. Nothing but safetensors is read, and no code.

    Raises:
        StageError: it is of another kind, has more than one output, or some weights are not in the files.
    """
    config = AutoConfig.from_pretrained(path / MODEL, **_ONLY_LOCAL)
    made = [name for name in config.architectures or () if name.endswith("ForSequenceClassification")]
    if not made:
        raise StageError(
            f"is no reward model: its config.json names {', '.join(config.architectures or ()) or 'no architecture'}; "
            "expected a ...ForSequenceClassification"
        )
    if config.num_labels != 1:
        raise StageError(f"a reward model has one output (num_labels), this model has {config.num_labels}")
    attention = "eager" if device_of_worker().type == "cpu" else "sdpa"
    try:
        model, found = AutoModelForSequenceClassification.from_pretrained(
            path / MODEL, output_loading_info=True, dtype=torch.float32, use_safetensors=True,
            attn_implementation=attention, **_ONLY_LOCAL,
        )  # fmt: skip
    except ValueError as error:
        raise StageError(f"transformers cannot load the reward model: {str(error).splitlines()[0]}") from error
    if missing := sorted(found["missing_keys"]):
        raise StageError(f"{len(missing)} weights are not in the reward model's files, the first is {missing[0]}")
    return model.to(device)


def rewarding(
    model: Any, precision: Precision, device: torch.device
) -> tuple[Any, Callable[[], AbstractContextManager[Any]]]:
    """A loaded reward model made ready to score, and the context that each of its forward passes needs."""
    precision = product_precision(precision, device)
    make_head_exact(model)
    head = [module for name, module in model.named_modules() if name.startswith("score")]
    freeze(model.requires_grad_(False).eval(), precision)
    for module in head:
        module.float()
    return model, partial(torch.autocast, device.type, torch.bfloat16, enabled=precision == "bf16")
