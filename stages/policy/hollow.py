"""Models that are built without their weights, which are read when it is known which worker holds which share.

A hollow model's weights have their shapes and take no memory. An adapter can be put on it, and it can be sharded; then
each worker reads its share from the files, in the precision that the weight is used in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.initialization import no_init_weights

from stages.core.forward.config import Precision
from stages.core.forward.own_layers import KNOWN
from stages.policy.files import weights_header

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class Stored:
    """The weights in a folder's safetensors files, by name."""

    folder: Path

    @cached_property
    def headers(self) -> Mapping[str, tuple[Path, Mapping[str, Any]]]:
        files = sorted(self.folder.glob("*.safetensors"))
        return {name: (file, about) for file in files for name, about in weights_header(file).items()}

    def shape(self, name: str) -> tuple[int, ...] | None:
        """None where there is no such weight, or it is of a kind that is not read by shares."""
        _, about = self.headers.get(name, (None, {}))
        return tuple(about["shape"]) if about.get("dtype") in _DTYPES else None

    def dtype(self, name: str) -> torch.dtype:
        return _DTYPES[self.headers[name][1]["dtype"]]

    def read(self, name: str, rows: slice = slice(None)) -> Tensor:
        """Some rows of a weight as they are stored: a mapping of the file, which lasts as long as the tensor."""
        file, _ = self.headers[name]
        with safe_open(file, framework="pt") as tensors:
            if not self.shape(name):
                scalar: Tensor = tensors.get_tensor(name)
                return scalar
            read: Tensor = tensors.get_slice(name)[rows]
            return read


@dataclass(frozen=True)
class Place:
    """Where a weight belongs: its name in the files, and the modules that hold it (several, if it is tied) with what it
    is called there. Modules stay the same whatever is put on the model or around it."""

    name: str
    holders: tuple[tuple[torch.nn.Module, str], ...]

    @property
    def weight(self) -> torch.nn.Parameter:
        module, leaf = self.holders[0]
        return module.get_parameter(leaf)

    def put(self, value: Tensor) -> None:
        """Another tensor as the weight."""
        weight = torch.nn.Parameter(value, self.weight.requires_grad)
        for module, leaf in self.holders:
            module.register_parameter(leaf, weight)


@dataclass(frozen=True)
class Hollow:
    """A causal language model without its weights."""

    model: Any
    places: tuple[Place, ...]
    stored: Stored

    def as_used(self, precision: Precision) -> None:
        """Give frozen weights the precision that they are used in: with products in bf16 linear layers have bf16, and
        embeddings what they are stored in (exactly what float32 would come to); all else is float32."""
        embedding = self.model.get_input_embeddings()
        for place in self.places:
            (module, leaf), weight = place.holders[0], place.weight
            if precision == "bf16" and not weight.requires_grad:
                if type(module) is torch.nn.Embedding:
                    place.put(_nothing(weight.shape, self.stored.dtype(place.name)))
                elif type(module) is torch.nn.Linear and leaf == "weight":
                    place.put(_nothing(weight.shape, torch.bfloat16))
        if embedding.weight.dtype != torch.float32:  # the residual stream is float32
            embedding.register_forward_hook(lambda _module, _inputs, output: output.float())

    def to_meta(self) -> None:
        """Put all weights that are to be read on the meta device, as sharding wants them."""
        for place in self.places:
            place.put(torch.empty_like(place.weight, device="meta", memory_format=torch.contiguous_format))

    @torch.no_grad()
    def fill(self, device: torch.device) -> None:
        """Read the weights to a device: whole, or of a sharded model this worker's shares."""
        for place in self.places:
            weight = place.weight.detach()
            if isinstance(weight, DTensor):
                # Not by DTensor.from_local: it brings to the card what is to stay in main memory.
                filled = torch.empty_like(weight, device=device)
                assert isinstance(filled, DTensor)
                first, share = first_row(weight), filled.to_local()
                if share.numel():  # a weight may have fewer rows than there are workers
                    share.copy_(self.stored.read(place.name, slice(first, first + len(share))))
                place.put(filled)
            else:
                whole = torch.empty(weight.shape, dtype=weight.dtype, device=device)
                place.put(whole.copy_(self.stored.read(place.name)))  # a copy: what is read stays a mapping of the file


def hollow(folder: Path, attention: str) -> Hollow | None:
    """The model in a folder, float32, to be filled; None where it has to be loaded whole.

    So it is where a weight is not simply one of the files' (experts that are stacked when they are read, buffers that
    are stored, heads that the configuration ties and the files do not), and for families that are not known to be right
    in packed rows (``stages.core.forward.own_layers.KNOWN``), which have to be tried with their weights first.
    """
    from accelerate import init_empty_weights

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if config.model_type not in KNOWN:
        return None
    with no_init_weights(), init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=attention, trust_remote_code=False
        )
    model.tie_weights()
    stored = Stored(folder)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    kept = set(model.state_dict()) - {name for name, _ in model.named_parameters(remove_duplicate=False)}
    if kept or any(stored.shape(name) != shape for name, shape in shapes.items()):
        return None
    names = {name: id(value) for name, value in model.named_parameters(remove_duplicate=False)}
    tied = [(name, own) for own in shapes for name in names if names[name] == names[own] and name != own]
    if any(name in stored.headers and not torch.equal(stored.read(name), stored.read(own)) for name, own in tied):
        return None
    holders: dict[int, list[tuple[torch.nn.Module, str]]] = {}
    for module in model.modules():
        for leaf, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            holders.setdefault(id(parameter), []).append((module, leaf))
    places = tuple(Place(name, tuple(holders[id(model.get_parameter(name))])) for name in shapes)
    for place in places:
        place.put(_nothing(shapes[place.name]))
    return Hollow(model.eval(), places, stored)


def _nothing(shape: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of one number, seen as one of any shape."""
    return torch.zeros((), dtype=dtype).expand(shape)


def first_row(weight: DTensor) -> int:
    """Where this worker's share of a weight begins, in rows: FSDP cuts as torch.chunk does."""
    mesh = weight.device_mesh
    return -(-len(weight) // mesh.size()) * int(mesh.get_local_rank())
