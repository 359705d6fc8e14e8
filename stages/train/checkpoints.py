"""Training state on disk: safetensors and JSON only, so that nothing is unpickled when a run continues.

A checkpoint is a folder with one or more safetensors files. In them stand, whole or in pieces, the trainable weights
as ``weight.NAME`` and the optimizer's moments as ``optimizer.NAME:KEY``. The pieces are those of
torch.distributed.checkpoint, which puts them together again, for any number of workers and any strategy; they are
written here, since it copies all of a worker's state before it writes.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from stages.io.filenames import METRICS
from stages.policy.hollow import first_row

PROGRESS = "progress.json"
_TENSORS = "state.safetensors"
_FILE = 128 * 2**20
"""Bytes of one file of a worker's pieces."""
_WEIGHT, _MOMENT = "weight.", "optimizer."


@dataclass
class TrainState:
    """Everything that a training continues from. Data position and random state follow from the step."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    step: int
    metrics: list[dict[str, float]]


def save(state: TrainState, folder: Path) -> None:
    """Write this worker's part: of a sharded model every worker writes its own, into one folder or into folders that
    are brought together later, and all have to take part; a model that is whole everywhere is written by worker 0."""
    if isinstance(state.model, FSDPModule):
        state.model.reshard()  # what was looked at last is still whole
        _save_share(_tensors(state), folder)
        if dist.get_rank() != 0:
            return
    else:
        tensors = {name: tensor.cpu().contiguous() for name, tensor in _tensors(state).items()}
        save_file(tensors, folder / _TENSORS)
    (folder / METRICS).write_text("".join(json.dumps(row) + "\n" for row in state.metrics), encoding="utf-8")
    (folder / PROGRESS).write_text(json.dumps({"step": state.step}), encoding="utf-8")


def _save_share(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write this worker's pieces, a few at a time: a file is made of copies. What is whole everywhere is worker 0's."""
    rank, number = dist.get_rank(), 0
    batch: dict[str, tuple[Tensor, list[int]]] = {}

    def write() -> None:
        places = {name: {"saved_offsets": offsets} for name, (_, offsets) in batch.items()}
        pieces = {name: piece.cpu().contiguous() for name, (piece, _) in batch.items()}
        file = folder / f"shard-{rank:05d}-{number:05d}.safetensors"
        save_file(pieces, file, {"format": "pt", "DCP_SHARDING_INFO": json.dumps(places)})
        batch.clear()

    size = 0
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            piece, offsets = tensor.to_local(), [first_row(tensor), *[0] * (tensor.dim() - 1)]
        elif rank == 0:
            piece, offsets = tensor, [0] * tensor.dim()
        else:
            continue
        if not piece.numel():  # a weight may have fewer rows than there are workers
            continue
        if batch and size + piece.nbytes > _FILE:
            write()
            size, number = 0, number + 1
        batch[name] = piece, offsets
        size += piece.nbytes
    if batch:
        write()


def load(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> TrainState:
    """Put a checkpoint back into a model and an optimizer that are built like those it was saved from; the number of
    workers and the strategy may be others. All workers have to call it.

    Raises:
        KeyError: a trainable weight of the model is not in the checkpoint.
    """
    reader = HuggingFaceStorageReader(str(folder))
    stored: Mapping[str, Any] = reader.read_metadata().state_dict_metadata
    parameters = dict(_trainable(model))
    if missing := [name for name in parameters if _WEIGHT + name not in stored]:
        raise KeyError(f"the checkpoint {folder} has no weight {missing[0]}")
    tensors = {_WEIGHT + name: parameter.detach() for name, parameter in parameters.items()}
    for name, entry in stored.items():
        if name.startswith(_MOMENT):
            tensors[name] = _like(parameters[_split(name)[0]], entry)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # true and fine without others
        state_dict_loader.load(tensors, storage_reader=reader)
    moments = _nested({name: tensor for name, tensor in tensors.items() if name.startswith(_MOMENT)})
    by_index = {index: moments[name] for index, name in enumerate(parameters) if name in moments}
    groups: Any = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": by_index, "param_groups": groups})
    step = int(json.loads((folder / PROGRESS).read_text(encoding="utf-8"))["step"])
    rows = [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]
    return TrainState(model, optimizer, step, rows)


def _tensors(state: TrainState) -> dict[str, Tensor]:
    """The weights and moments under their names in a checkpoint; of the last step the weights alone, since none
    follows. An optimizer numbers the parameters as the model lists those that are trained."""
    parameters = _trainable(state.model)
    tensors = {_WEIGHT + name: parameter.detach() for name, parameter in parameters}
    if state.metrics and state.metrics[-1]["steps"] == state.step:
        return tensors
    for index, values in state.optimizer.state_dict()["state"].items():
        name = parameters[index][0]
        tensors |= {f"{_MOMENT}{name}:{key}": torch.as_tensor(value) for key, value in _flat(values)}
    return tensors


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """An optimizer's state of one parameter; bitsandbytes keeps its 8-bit moments in a mapping inside."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}:{inner}", tensor) for inner, tensor in _flat(value))
        else:
            yield key, value


def _nested(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """The optimizer's state by parameter, as it was before :func:`_flat`."""
    moments: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        parameter, *inside, key = _split(name)
        target = moments.setdefault(parameter, {})
        for part in inside:
            target = target.setdefault(part, {})
        target[key] = tensor if tensor.dim() or tensor.is_floating_point() else tensor.item()
    return moments


def _split(name: str) -> list[str]:
    return name.removeprefix(_MOMENT).split(":")


def _like(parameter: Tensor, stored: Any) -> Tensor:
    """Room for a moment: sharded as its parameter if it has that one's shape, else whole, in main memory."""
    if stored.size == parameter.shape:
        return torch.empty_like(parameter, dtype=stored.properties.dtype, requires_grad=False)
    return torch.empty(stored.size, dtype=stored.properties.dtype)


def _trainable(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]
