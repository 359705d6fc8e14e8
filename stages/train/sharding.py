"""A model on several workers: every one holds all of it (DDP), or a share of every weight (FSDP)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from stages.core.forward.config import KNOWN
from stages.core.forward.logprobs import ResponseLogprobs, decoder_of

Strategy = Literal["ddp", "fsdp"]


def shards(strategy: Strategy, world: int) -> bool:
    """Whether ``world`` workers hold shares of the weights; a single worker holds all of them anyway."""
    return strategy == "fsdp" and world > 1


def distribute(
    model: ResponseLogprobs, strategy: Strategy, device: torch.device, offload: bool = False
) -> torch.nn.Module:
    """The model as the training loop calls it on this worker, one of torch's default process group.

    Gradients come out as means over the workers. For ``ddp`` the model has to be on ``device``; for ``fsdp`` it may be
    on the CPU, only this worker's share is brought to ``device``, or with ``offload`` to main memory.
    """
    world = dist.get_world_size() if dist.is_initialized() else 1
    if shards(strategy, world):
        model.keeps_head = False
        return _shard(model, device, world, offload)
    if world == 1:
        return model
    ids = [torch.cuda.current_device()] if device.type == "cuda" else None
    replicated = torch.nn.parallel.DistributedDataParallel(model, device_ids=ids)
    # Nothing here changes buffers; to send them in each forward pass, all workers would have to make equally many.
    replicated.broadcast_buffers = False
    return replicated


def whole_weights(module: torch.nn.Module) -> dict[str, Tensor]:
    """The trainable weights of a sharded module by name, whole and in main memory, on worker 0; nothing on the others.

    All workers have to call it.
    """
    weights = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            shard = parameter.data
            assert isinstance(shard, DTensor)
            whole = shard.full_tensor()
            if dist.get_rank() == 0:
                weights[name] = whole.cpu()
    return weights


def shares_on(device: torch.device, offload: bool) -> torch.device:
    """Where this worker's shares lie, in training on ``device``."""
    return torch.device("cpu") if offload else device


def _shard(model: ResponseLogprobs, device: torch.device, world: int, offload: bool) -> torch.nn.Module:
    """FSDP2: each decoder layer is gathered when its turn comes, what is outside of the layers (the embedding, the
    head) stays whole during a step. Gradients are reduced in float32."""
    mesh = init_device_mesh(device.type, (world,))
    kept = _offloading(device) if offload else OffloadPolicy()
    for layer in _layers(model):
        if rounded := _rounded(model, layer):
            # A layer with a bias returns a view, which is only wrong where it is then changed in place.
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
            fully_shard(rounded, mesh=mesh, mp_policy=_precision(torch.bfloat16), offload_policy=kept)
        fully_shard(layer, mesh=mesh, mp_policy=_precision(None), offload_policy=kept)
    fully_shard(model, mesh=mesh, mp_policy=_precision(None), offload_policy=kept)
    return model


def _offloading(device: torch.device) -> CPUOffloadPolicy:
    # A card fetches from pinned memory while it computes; without one there is nothing to pin for.
    return CPUOffloadPolicy(pin_memory=device.type == "cuda")


def _precision(gathered: torch.dtype | None) -> MixedPrecisionPolicy:
    # What goes into a layer keeps its type: the residual stream is float32 on purpose.
    return MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=torch.float32, cast_forward_inputs=False)


def _rounded(model: ResponseLogprobs, layer: Any) -> list[torch.nn.Module]:
    """The linear parts of a layer, if their float32 weights are only ever used rounded to bfloat16: they may be
    gathered in it, and nothing comes out differently. That is half the memory and half the traffic, and there are no
    copies to round them into, which the backward pass would need again and keep, of all layers, on every worker.

    So it is in the families that are known (to others' layers weights may be more than what they multiply by), but not
    under adapters, some of which calculate in float32; what is frozen there is stored in bfloat16 anyway.
    """
    family = decoder_of(model.model).config.model_type
    trained = all(parameter.requires_grad for parameter in layer.parameters())
    if model.dtype != torch.bfloat16 or family not in KNOWN or not trained:
        return []
    return [module for module in layer.modules() if type(module) is torch.nn.Linear]


def _layers(model: ResponseLogprobs) -> Iterator[Any]:
    """The decoder's layers, whatever the architecture calls their list."""
    for part in decoder_of(model.model).children():
        if isinstance(part, torch.nn.ModuleList):
            yield from part
