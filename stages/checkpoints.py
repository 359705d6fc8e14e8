"""Training state on disk: safetensors and JSON only, so that nothing is unpickled when a run continues."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from stages.layout import METRICS

_TENSORS = "state.safetensors"
_PROGRESS = "progress.json"


@dataclass
class TrainState:
    """Everything that a training continues from. Data position and random state follow from the step."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    step: int
    metrics: list[dict[str, float]]


def save(state: TrainState, folder: Path) -> None:
    """Write trainable weights, optimizer moments, step and metrics so far."""
    tensors = {f"weight.{name}": p.detach() for name, p in _trainable(state.model)}
    moments = state.optimizer.state_dict()["state"]
    for index, values in moments.items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in _flat(values)}
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, folder / _TENSORS)
    (folder / METRICS).write_text("".join(json.dumps(row) + "\n" for row in state.metrics), encoding="utf-8")
    (folder / _PROGRESS).write_text(json.dumps({"step": state.step}), encoding="utf-8")


def load(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> TrainState:
    """Put a checkpoint back into a model and an optimizer that are built like those it was saved from.

    Raises:
        KeyError: a trainable weight of the model is not in the checkpoint.
    """
    tensors = load_file(folder / _TENSORS)
    with torch.no_grad():
        for name, parameter in _trainable(model):
            parameter.copy_(tensors[f"weight.{name}"])
    moments: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, *inside, key = name.split(".")
            target = moments.setdefault(int(index), {})
            for part in inside:
                target = target.setdefault(part, {})
            target[key] = tensor if tensor.dim() or tensor.is_floating_point() else tensor.item()
    groups: Any = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    step = json.loads((folder / _PROGRESS).read_text(encoding="utf-8"))["step"]
    rows = [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]
    return TrainState(model, optimizer, step, rows)


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """An optimizer's state of one parameter; bitsandbytes keeps its 8-bit moments in a mapping inside."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{inner}", tensor) for inner, tensor in _flat(value))
        else:
            yield key, value


def _trainable(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]
