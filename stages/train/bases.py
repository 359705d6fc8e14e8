"""The base model, kept in memory from one training of a process to the next that begins with the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stages.core.forward.layout import choose_layout
from stages.core.forward.packing import Layout
from stages.policy.adapter_settings import prompt_adapter
from stages.train.config import TrainConfig
from stages.train.policy import HollowPolicy, build_policy, hollow_policy, put_on


class Built(NamedTuple):
    model: Any
    """The policy to train."""
    layout: Layout
    shares: HollowPolicy | None = None
    """The same, if its weights are yet to be read: after it is sharded, each worker's share."""


@dataclass
class _Kept:
    key: tuple[Any, ...]
    base: Any
    """With what was trained on it, until it is taken off."""
    layout: Layout
    weights: dict[str, Tensor] | None
    """The base's own, where they are trained; an adapter leaves them as they are."""


def sharing(config: TrainConfig, initial: Path, device: torch.device) -> Built | None:
    """The policy that several workers will hold in shares, without its weights; None if it has to be loaded whole."""
    made = hollow_policy(config, initial, device)
    if made is None:
        return None
    made.base.to_meta()
    return Built(made.policy, choose_layout(made.policy, config.layout, filled=False), made)


class Bases:
    """Policies to train, and the base of the last one. What is built on a kept base is the same to the bit as what is
    built on one that was just loaded: loading draws no random numbers.

    ``loads`` counts how often a base was loaded.
    """

    def __init__(self, keep: bool = True) -> None:
        self._keep = keep
        self._kept: _Kept | None = None
        self.loads = 0

    @contextmanager
    def policy(self, config: TrainConfig, initial: Path, device: torch.device) -> Iterator[Built]:
        """The policy that a training begins with, and its layout. Afterwards the base is kept, unless an error has
        left it in a state that nobody knows."""
        kept, self._kept = self._kept, None
        key = _key(config, initial, device)
        if kept is None or kept.key != key:
            del kept
            self.loads += 1
            model = build_policy(config, initial, device)
            layout, weights = choose_layout(model, config.layout), None
            if self._keep and config.lora is None:
                weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        else:
            model, layout, weights = _again(kept, config, device), kept.layout, kept.weights
        try:
            yield Built(model, layout)
        except SystemExit:  # a trial that does not go on
            self._take_back(config, initial, _Kept(key, model, layout, weights))
            raise
        self._take_back(config, initial, _Kept(key, model, layout, weights))

    def _take_back(self, config: TrainConfig, initial: Path, used: _Kept) -> None:
        if self._keep and _stays_as_it_is(config) and prompt_adapter(initial) is None:
            if config.lora is not None:
                used.base = _thawed(used.base.unload())
            self._kept = used


def _key(config: TrainConfig, initial: Path, device: torch.device) -> tuple[Any, ...]:
    """What makes a base another one, or leaves it in another state: under an adapter it is rounded to the products'
    precision."""
    adapted = config.lora is not None
    return initial, str(device), adapted, config.quantization, config.layout, adapted and config.precision


def _stays_as_it_is(config: TrainConfig) -> bool:
    """Whether a base can be had back from what was trained on it. Some of peft's settings change it (another way to
    begin, biases, modules that are trained whole); DoRA begins with the lengths of its weights, which are rounded by
    then."""
    return config.peft is None and not (config.lora and config.lora.dora)


def _thawed(base: Any) -> Any:
    """All weights in float32 again, as a base is without an adapter: peft makes an adapter in the precision of what it
    is put on."""
    for module in base.modules():
        if type(module) in (torch.nn.Linear, torch.nn.Embedding) and module.weight.dtype != torch.float32:
            module.weight.data = module.weight.data.float()
    return base


def _again(kept: _Kept, config: TrainConfig, device: torch.device) -> Any:
    if kept.weights is None:
        return put_on(kept.base, config).to(device)
    kept.base.load_state_dict(kept.weights)
    return kept.base
