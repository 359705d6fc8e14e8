"""A policy whose weights lie in shares on several workers becomes files, and no worker ever holds all of it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from stages.base import StageError
from stages.io.filenames import ADAPTER, MODEL
from stages.policy.adapters import save_adapter
from stages.policy.files import copy_all_but_weights, keep_dtype
from stages.policy.hollow import Place, first_row, rows_each
from stages.policy.save import carried, weights_dtype, write_weights
from stages.policy.stored import Stored
from stages.train.policy import HollowPolicy

HASHES = "hashes.json"
"""Beside a policy that was saved from shares: the BLAKE2 of each weight as it was written."""


@torch.no_grad()
def save(trained: HollowPolicy, initial: Path, folder: Path | None) -> None:
    """Write the trained policy as :func:`stages.train.policy.save_policy` does: ``model`` in float32 with any adapter
    merged, and ``adapter``. All workers call this; ``folder`` is worker 0's, None on the others."""
    stored, writes, changed = trained.base.stored, folder is not None, trained.adapted()
    adapter = dict(_whole(trained.policy, writes)) if changed else {}
    parts = {name: place for place in trained.base.places for name in place.origin.names}
    fixed = [name for origin in trained.base.buffers for name in origin.names]
    unread = getattr(trained.base.model, "_keys_to_ignore_on_load_unexpected", None) or ()
    others = carried(unread, sorted(stored.headers.keys() - parts.keys() - set(fixed)))
    hashes: dict[str, str] = {}

    def get(name: str) -> Tensor | None:
        place = parts.get(name)
        if place is None or not place.weight.requires_grad:
            value = stored.read(name) if writes else None
        else:
            value = _together(place.weight, writes) if not place.origin.stacked else _of_expert(place, name, writes)
        if value is None:
            return None
        value = value if name in others else value.float()
        if place is not None and (layer := changed.get(place.name)) is not None:
            value = value + _change(layer, names, adapter)
        hashes[name] = _hash(value)
        return value

    names = {id(parameter): name for name, parameter in trained.policy.named_parameters()}
    sizes = {name: 4 * math.prod(stored.shape(name) or ()) for name in (*parts, *fixed, *others)}
    if folder is not None:
        copy_all_but_weights(initial / MODEL, folder / MODEL)
        if (dtype := weights_dtype(initial / MODEL)) is not None:
            keep_dtype(folder / MODEL, dtype)
        if adapter:
            save_adapter(trained.policy, folder / ADAPTER, adapter)
    write_weights(None if folder is None else folder / MODEL, sizes, get)
    if folder is not None:
        (folder / HASHES).write_text(json.dumps(hashes), encoding="utf-8")


def check(policy: Path) -> int:
    """How many weights are stored, each of them what was written.

    Raises:
        StageError: a weight is missing, or is not what was written.
    """
    noted: dict[str, str] = json.loads((policy / HASHES).read_text(encoding="utf-8"))
    stored = Stored(policy / MODEL)
    if lost := sorted(noted.keys() ^ stored.headers.keys()):
        raise StageError(f"the stored policy is not the one that was trained: {lost[0]} is not among its weights")
    for name, expected in noted.items():
        if _hash(stored.read(name)) != expected:
            raise StageError(f"the stored policy is not the one that was trained: its weight {name} differs")
    return len(noted)


def _hash(value: Tensor) -> str:
    data = value.contiguous().flatten().view(torch.uint8)
    return hashlib.blake2b(data.numpy().data, digest_size=16).hexdigest()


def _whole(policy: Any, writes: bool) -> Iterator[tuple[str, Tensor]]:
    """The trained weights, whole, on the worker that writes. The others go through them too, for their shares."""
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad and (value := _together(parameter, writes)) is not None:
            yield name, value


def _together(weight: Tensor, writes: bool) -> Tensor | None:
    """A weight, whole and in main memory, brought together from all workers' shares."""
    value = weight.detach()
    whole = value.full_tensor() if isinstance(value, DTensor) else value
    return whole.cpu() if writes else None


def _of_expert(place: Place, name: str, writes: bool) -> Tensor | None:
    """A weight of one expert, in main memory, from the worker that holds the expert: all experts of a layer together
    may be more than there is room for beside a training."""
    number, value = place.origin.row_of[name], place.weight.detach()
    row = _row(value, number) if isinstance(value, DTensor) else value[number]
    return place.origin.part(row, name).cpu().clone() if writes else None


def _row(weight: DTensor, number: int) -> Tensor:
    """A row of a weight; all workers call this."""
    share, first = weight.to_local(), first_row(weight)
    held = first <= number < first + len(share)
    row = share[number - first].contiguous() if held else share.new_empty(weight.shape[1:])
    dist.broadcast(row, group=weight.device_mesh.get_group(), group_src=number // rows_each(weight))
    return row


def _change(layer: Any, names: Mapping[int, str], adapter: Mapping[str, Tensor]) -> Tensor:
    """What a LoRA adds to its layer's weight: scale B A."""
    (active,) = layer.active_adapters
    a, b = (adapter[names[id(part[active].weight)]] for part in (layer.lora_A, layer.lora_B))
    change: Tensor = (b @ a) * layer.scaling[active]
    return change.T if layer.fan_in_fan_out else change
