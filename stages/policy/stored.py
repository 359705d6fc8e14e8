"""Weights as they lie in the safetensors files of a model's folder, and of which of them a model's own are made.

Most of a model's weights are one of the files'. Mixtures of experts have one for each expert there, and transformers
stacks them when it loads a model: which ones, and in what order, is looked up in its own table
(``transformers.conversion_mapping``), the one that it loads and saves by.
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
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from stages.policy.files import weights_header

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_STACKS = ([(MergeModulelist, 0)], [(MergeModulelist, 0), (Concatenate, 1)])
"""What may be done to experts: they become rows of one weight, each of one part or of several below each other."""


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
class Origin:
    """What a model's weight is made of: one of the files' weights, or those of its experts, which are its rows."""

    stored: Stored
    rows: tuple[tuple[str, ...], ...]
    """Of each expert the weights that lie below each other in its row; of what is not stacked the only one."""
    stacked: bool

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for row in self.rows for name in row)

    @property
    def dtype(self) -> torch.dtype:
        return self.stored.dtype(self.rows[0][0])

    @cached_property
    def shape(self) -> tuple[int, ...] | None:
        """None where the parts do not make up a weight, or are of a kind that is not read by shares."""
        if not self.stacked:
            return self.stored.shape(self.rows[0][0])
        parts, *others = [tuple(self.stored.shape(name) or () for name in row) for row in self.rows]
        if any(other != parts for other in others) or not all(parts) or len({part[1:] for part in parts}) > 1:
            return None
        return len(self.rows), sum(part[0] for part in parts), *parts[0][1:]

    def read(self, share: Tensor, first: int = 0) -> None:
        """Fill a tensor with the rows from ``first`` on. Nothing else is read, and nothing is stacked on the way."""
        rows = slice(first, first + len(share)) if share.dim() else slice(None)
        if not self.stacked:
            share.copy_(self.stored.read(self.rows[0][0], rows))
            return
        for row, names in zip(share, self.rows[rows], strict=True):
            for name, part in zip(names, self._parts(row, names), strict=True):
                part.copy_(self.stored.read(name))

    @cached_property
    def row_of(self) -> Mapping[str, int]:
        """The number of the expert that each of the files' weights belongs to."""
        return {name: number for number, names in enumerate(self.rows) for name in names}

    def part(self, row: Tensor, name: str) -> Tensor:
        """One of the files' weights, a view of its expert's row."""
        names = self.rows[self.row_of[name]]
        return self._parts(row, names)[names.index(name)]

    def _parts(self, row: Tensor, names: tuple[str, ...]) -> tuple[Tensor, ...]:
        return torch.split(row, [(self.stored.shape(name) or (0,))[0] for name in names])


def origins(model: Any, stored: Stored) -> dict[str, Origin]:
    """Of which of the files' weights each of a model's is made, as transformers would load it. Left out are those that
    the files do not have, or that are made in another way than by giving a new name or by stacking experts."""
    transforms = get_model_conversion_mapping(model)
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    held = model.state_dict()
    found: dict[str, dict[str | None, list[str]]] = {}
    for name in sorted(stored.headers, key=dot_natural_key):  # the order in which experts are stacked
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, held)
        if target not in held and name in held:  # it has the name that it is to have
            target, pattern = name, None
        if target in held:
            found.setdefault(target, {}).setdefault(pattern, []).append(name)
    made = {target: _origin(stored, converters, parts) for target, parts in found.items()}
    return {target: origin for target, origin in made.items() if origin is not None}


def _origin(stored: Stored, converters: list[WeightConverter], parts: Mapping[str | None, list[str]]) -> Origin | None:
    """``parts``: the files' weights that go into one of a model's, by the pattern in transformers' table that they
    match; without one they are it."""
    if None in parts:
        names = tuple(name for each in parts.values() for name in each)
        return Origin(stored, (names,), stacked=False) if len(names) == 1 else None
    converter = next(each for each in converters if not parts.keys().isdisjoint(each.source_patterns))
    if [(type(each), getattr(each, "dim", None)) for each in converter.operations] not in _STACKS:
        return None
    columns = [parts.get(pattern, []) for pattern in converter.source_patterns]
    if len({len(column) for column in columns}) > 1 or len(parts) != len(columns):
        return None
    return Origin(stored, tuple(zip(*columns, strict=True)), stacked=True)
