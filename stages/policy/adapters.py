"""Adapters through peft: put on a model, read back from a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from stages.base import StageError
from stages.policy import families
from stages.policy.adapter_settings import ADAPTER_CONFIG, read_settings
from stages.policy.config import PROMPT_LEARNING


def wrap(model: Any, settings: Mapping[str, Any]) -> Any:
    """The model with a fresh adapter, the only trainable part.

    Without ``target_modules`` and ``target_parameters`` peft's table for the architecture decides; for an architecture
    that it does not list, all linear layers are adapted except the head and what ``families.left_out`` names.

    Raises:
        StageError: this adapter cannot be put on this model.
    """
    from peft import get_peft_model

    if fault := families.misfit(model.config.model_type, settings):
        raise StageError("{}: {}".format(*fault))
    try:
        adapted = get_peft_model(model, _config(settings, model))
    except ValueError as error:
        raise StageError(f"peft cannot put this adapter on the model: {error}") from error
    _refuse_tied(adapted)
    return adapted


def attach(model: Any, folder: Path, trainable: bool = False) -> Any:
    """The model with the adapter saved in ``folder``.

    Prompt learning saves the virtual tokens alone, so continued training trains these and not the network that may have
    made them.

    Raises:
        StageError: the adapter cannot be loaded safely, or was trained on a model of another shape.
    """
    from peft import get_peft_model

    try:
        config = _config(read_settings(folder), model)
    except ValueError as error:
        raise StageError(str(error)) from None
    config.inference_mode = not trainable
    if getattr(config, "prefix_projection", False):
        config.prefix_projection = False
    try:
        adapted = get_peft_model(model, config)
        result = adapted.load_adapter(str(folder), "default", is_trainable=trainable)
    except (RuntimeError, ValueError) as error:
        raise StageError(f"the adapter in {folder} does not fit the model: {_first_mismatch(error)}") from error
    # Saved prompts reach their encoder by a separate path, where a wrong shape is an error.
    prompt = config.peft_type in PROMPT_LEARNING
    odd = [] if prompt else [*result.missing_keys, *result.unexpected_keys]
    if odd:
        raise StageError(
            f"the adapter in {folder} does not fit the model: {len(odd)} weights have no counterpart, the first is "
            f"{odd[0]}; is it an adapter of this base model?"
        )
    _refuse_tied(adapted)
    return adapted


def _refuse_tied(adapted: Any) -> None:
    """Raises:
    StageError: an adapter is on a head that shares its weights with the embedding: merged, it would change both.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = adapted.get_base_model()
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    adapts = any(isinstance(end, BaseTunerLayer) for end in ends)
    if adapts and ends[1] is not None and _weight(ends[0]) is _weight(ends[1]):
        raise StageError(
            "the adapter is on a head that shares its weights with the embedding (tie_word_embeddings): merging it "
            "would change both; leave the head out of target_modules"
        )


def _weight(layer: Any) -> Any:
    return getattr(layer, "base_layer", layer).weight


def save_adapter(model: Any, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write a model's adapter in PEFT format; ``weights``, by the parameters' names, in the place of the model's own.
    It does not say which folder of this machine its base was in."""
    model.save_pretrained(folder, state_dict=dict(weights) if weights else None)
    file = folder / ADAPTER_CONFIG
    settings = json.loads(file.read_text(encoding="utf-8")) | {"base_model_name_or_path": None}
    file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "README.md").unlink(missing_ok=True)  # peft's model card names that folder too


def _config(settings: Mapping[str, Any], model: Any) -> Any:
    """peft's configuration object, with the target modules filled in where peft does not know the architecture."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils import constants

    values = {name: value for name, value in settings.items() if name != "peft_type"}
    task = "CAUSAL_LM" if hasattr(model, "prepare_inputs_for_generation") else None  # a reward model writes nothing
    config = PEFT_TYPE_TO_CONFIG_MAPPING[settings["peft_type"]](**values, task_type=task)
    given = getattr(config, "target_modules", None) is not None or getattr(config, "target_parameters", None)
    if settings["peft_type"] in PROMPT_LEARNING or given:
        return config
    table = getattr(constants, f"TRANSFORMERS_MODELS_TO_{settings['peft_type']}_TARGET_MODULES_MAPPING")
    family = model.config.model_type
    if family in table and family not in families.EXPERT_NAMES:
        return config  # peft looks it up, except where it looks for experts first
    config.target_modules = set(table[family]) - families.left_out(family) if family in table else _linear_layers(model)
    if settings["peft_type"] == "IA3" and config.feedforward_modules is None:
        config.feedforward_modules = set()  # vectors on the outputs only
    return config


def _linear_layers(model: Any) -> set[str]:
    """Names of the layers that an adapter is put on by default.

    A subclass with a forward pass of its own (a router, a grouped product) is none, but for a quantised one.
    """
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    def takes_one(module: Any) -> bool:
        made = type(module)
        plain = made.forward in (Linear.forward, Conv1D.forward) or made.__module__.startswith("bitsandbytes")
        return isinstance(module, Linear | Conv1D) and plain

    head, left_out = model.get_output_embeddings(), families.left_out(model.config.model_type)
    return {
        name
        for name, module in model.named_modules()
        if takes_one(module) and module is not head and left_out.isdisjoint(name.split("."))
    }


def _first_mismatch(error: Exception) -> str:
    """The line of torch's long message that names a weight."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "mismatch" in line), lines[0] if lines else type(error).__name__)
