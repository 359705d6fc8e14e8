"""The policy in training: built from an earlier one, and saved as the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.io.filenames import ADAPTER, MODEL
from stages.policy.adapter_settings import prompt_adapter
from stages.policy.adapters import attach, save_adapter, wrap
from stages.policy.config import PROMPT_LEARNING
from stages.policy.files import copy_model
from stages.policy.hollow import Hollow, hollow
from stages.policy.load import attention_of_worker, device_of_worker, load_model, load_policy, product_precision
from stages.policy.save import save_model
from stages.train.config import FitConfig, LoraConfig, TrainConfig


def build_policy(config: TrainConfig, path: Path, device: torch.device | None = None) -> Any:
    """The model to train, float32 (but for a quantised base), with an adapter if the configuration asks for one, on
    ``device`` (by default the worker's).

    Weights are drawn on the CPU, so that they are the same wherever the model goes. A policy that has virtual tokens
    already goes on with these.
    """
    cpu, target = torch.device("cpu"), device or device_of_worker()
    if config.lora is not None and (made := hollow_policy(config, path, target)) is not None:
        made.base.fill(target)
        return made.policy.to(target)
    if prompt_adapter(path) is not None:
        return load_policy(path, cpu, trainable=True).to(target)
    if config.quantization is not None:  # is made on its device and stays there
        return put_on(load_model(path, target, config.quantization, config.precision), config)
    return put_on(load_model(path, cpu), config).to(target)


@dataclass(frozen=True)
class HollowPolicy:
    """A policy whose weights, but for those of an adapter, are yet to be read (:mod:`stages.policy.hollow`)."""

    policy: Any
    base: Hollow

    def adapted(self) -> dict[str, Any]:
        """The layers with a LoRA, by the name of the weight that it changes."""
        from peft.tuners.lora import LoraLayer

        layers = {id(m.get_base_layer()): m for m in self.policy.modules() if isinstance(m, LoraLayer)}
        held = ((place.name, *place.holders[0]) for place in self.base.places)
        named = ((name, layers.get(id(module))) for name, module, leaf in held if leaf == "weight")
        return {name: layer for name, layer in named if layer is not None}


def hollow_policy(config: TrainConfig, path: Path, device: torch.device) -> HollowPolicy | None:
    """The policy to train on ``device``, on the CPU as yet: trained weights float32, frozen ones in the precision that
    they are used in. None where a whole model has to be there first: for adapters that begin with its weights, for
    virtual tokens, quantised bases, an adapter on anything but linear layers (such as stacked experts), and models that
    cannot be hollow."""
    plain = config.peft is None and config.quantization is None and not (config.lora and config.lora.dora)
    if not plain or prompt_adapter(path) is not None:
        return None
    base = hollow(path / MODEL, attention_of_worker())
    if base is None:
        return None
    from peft.tuners.lora import Linear, LoraLayer

    drawn = torch.get_rng_state()
    made = HollowPolicy(put_on(base.model, config), base)
    if any(isinstance(part, LoraLayer) and type(part) is not Linear for part in made.policy.modules()):
        torch.set_rng_state(drawn)
        return None
    base.as_used(product_precision(config.precision, device))
    return made


def put_on(base: Any, config: TrainConfig) -> Any:
    """A base model with the fresh adapter that the configuration asks for, if it asks for one."""
    settings = adapter_settings(config)
    return base if settings is None else wrap(base, settings)


def rebuild_policy(config: TrainConfig, path: Path, weights: Mapping[str, Tensor]) -> Any:
    """The policy in main memory as it was built, but with these trained weights."""
    policy = build_policy(config, path, torch.device("cpu"))
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert trained == weights.keys(), sorted(trained ^ weights.keys())
    policy.load_state_dict(weights, strict=False)
    return policy


def build_optimizer(parameters: Iterable[torch.nn.Parameter], config: FitConfig) -> torch.optim.Optimizer:
    """AdamW, with moments in float32 or, from bitsandbytes, in 8 bits (Dettmers et al., arXiv:2110.02861)."""
    if config.optimizer == "adamw_8bit":
        import bitsandbytes

        made: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(
            parameters, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        return made
    return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)


def without_dropout(module: torch.nn.Module) -> torch.nn.Module:
    """Turn off the model's own dropout, as the reference has it; an adapter's, which was asked for, stays on."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers.modeling_layers import GradientCheckpointingLayer

    module.eval()
    for part in list(module.modules()):
        if isinstance(part, BaseTunerLayer):  # around a linear layer, which has no dropout of its own
            part.train()
        if isinstance(part, GradientCheckpointingLayer) and part.gradient_checkpointing:
            part.training = True  # only then does transformers recompute activations
            for name, value in vars(part).items():
                if "dropout" in name and isinstance(value, float):
                    setattr(part, name, 0.0)
    return module


def save_policy(
    policy: Any, config: TrainConfig, initial: Path, folder: Path, look: Callable[[Any], None] = lambda _: None
) -> None:
    """Write the trained policy; all but its weights is as in the initial one.

    ``model`` holds everything, with the adapter merged; only virtual tokens cannot be merged, then it holds what they
    were trained on. An adapter trained on a quantised base is merged into what the quantised weights stand for, since
    that is what it was trained to complement; ``model`` is not quantised.

    Args:
        look: is given the model as it was trained, in float32, before it is merged and stored.
    """
    settings = adapter_settings(config)
    if settings is None:
        look(policy)
        save_model(policy, initial / MODEL, folder / MODEL)
        return
    save_adapter(policy, folder / ADAPTER)
    # The base in training is rounded to the products' precision, or quantised.
    base = load_model(initial, next(policy.parameters()).device, config.quantization, config.precision)
    adapted = attach(base.dequantize().float() if config.quantization is not None else base, folder / ADAPTER)
    look(adapted)
    if settings["peft_type"] in PROMPT_LEARNING:
        copy_model(initial / MODEL, folder / MODEL)
    else:
        save_model(adapted.merge_and_unload(), initial / MODEL, folder / MODEL)


def adapter_settings(config: TrainConfig) -> dict[str, Any] | None:
    """peft's settings for the adapter that a training asks for; None for full fine-tuning."""
    if config.lora is None:
        return dict(config.peft) if config.peft is not None else None
    return lora_settings(config.lora)


def lora_settings(lora: LoraConfig) -> dict[str, Any]:
    """peft's settings for a LoRA."""
    return {
        "peft_type": "LORA",
        "r": lora.rank,
        "lora_alpha": lora.alpha or 2 * lora.rank,
        "lora_dropout": lora.dropout,
        "target_modules": list(lora.target_modules) if lora.target_modules else None,
        "use_dora": lora.dora,
        "use_rslora": lora.rslora,
    }
