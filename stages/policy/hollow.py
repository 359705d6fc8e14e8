"""Models that are built without their weights, which are read when it is known which worker holds which share.

A hollow model's weights have their shapes and take no memory. An adapter can be put on it, and it can be sharded; then
each worker reads its share from the files, in the precision that the weight is used in.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.initialization import no_init_weights

from stages.core.forward.config import KNOWN, Precision
from stages.policy.stored import Origin, Stored, origins


@dataclass(frozen=True)
class Place:
    """Where a weight belongs: its name, what it is made of, and the modules that hold it (several, if it is tied) with
    what it is called there. Modules stay the same whatever is put on the model or around it."""

    name: str
    origin: Origin
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
    buffers: tuple[Origin, ...]
    """What is stored and never trained, such as the biases of a router: it is in the model from the beginning."""
    stored: Stored

    def as_used(self, precision: Precision) -> None:
        """Give frozen weights the precision that they are used in: with products in bf16 linear layers have bf16, and
        embeddings what they are stored in (exactly what float32 would come to). All else is float32: stacked experts
        too, whose products transformers works out in the precision that they are held in."""
        embedding = self.model.get_input_embeddings()
        for place in self.places:
            (module, leaf), weight = place.holders[0], place.weight
            if precision == "bf16" and not weight.requires_grad:
                if type(module) is torch.nn.Embedding:
                    place.put(_nothing(weight.shape, place.origin.dtype))
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
                    place.origin.read(share, first)
                place.put(filled)
            else:
                whole = torch.empty(weight.shape, dtype=weight.dtype, device=device)
                place.origin.read(whole)  # a copy: what is read stays a mapping of the file
                place.put(whole)


def hollow(folder: Path, attention: str) -> Hollow | None:
    """The model in a folder, float32, to be filled; None where it has to be loaded whole.

    So it is where a weight is neither one of the files' nor a stack of experts from them (heads that the configuration
    ties and the files do not, quantised weights), and for families that are not known to be right in packed rows
    (``stages.core.forward.config.KNOWN``), which have to be tried with their weights first.
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
    made_of = origins(model, stored)
    held = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    names = {name: id(value) for name, value in model.named_parameters(remove_duplicate=False)}
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    buffers = sorted(held.keys() - names.keys())
    if any(name not in made_of or made_of[name].shape != held[name] for name in (*shapes, *buffers)):
        return None
    tied = [(name, own) for own in shapes for name in names if names[name] == names[own] and name != own]
    stored_twice = ((made_of[name].names[0], made_of[own].names[0]) for name, own in tied if name in made_of)
    if any(not torch.equal(stored.read(name), stored.read(own)) for name, own in stored_twice):
        return None
    holders: dict[int, list[tuple[torch.nn.Module, str]]] = {}
    for module in model.modules():
        for leaf, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            holders.setdefault(id(parameter), []).append((module, leaf))
    places = tuple(Place(name, made_of[name], tuple(holders[id(model.get_parameter(name))])) for name in shapes)
    for place in places:
        place.put(_nothing(shapes[place.name]))
    for name in buffers:
        made_of[name].read(model.get_buffer(name))
    return Hollow(model.eval(), places, tuple(made_of[name] for name in buffers), stored)


def _nothing(shape: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of one number, seen as one of any shape."""
    return torch.zeros((), dtype=dtype).expand(shape)


def rows_each(weight: DTensor) -> int:
    """Rows of a worker's share of a weight; the last ones may have fewer or none: FSDP cuts as torch.chunk does."""
    return -(-len(weight) // weight.device_mesh.size())


def first_row(weight: DTensor) -> int:
    """Where this worker's share of a weight begins, in rows."""
    return rows_each(weight) * int(weight.device_mesh.get_local_rank())
