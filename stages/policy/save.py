"""Trained weights in the files of a policy: in float32, so that nothing of what was trained is rounded away."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig

from stages.policy.files import WEIGHTS, copy_all_but_weights, keep_dtype

_SMALLEST, _LARGEST = 64 * 2**20, 4 * 2**30
"""Bytes of a file of weights; only the last may have fewer, and one with a single weight more."""
_INDEX = "model.safetensors.index.json"
_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def save_model(model: Any, initial: Path, folder: Path) -> None:
    """Write a model whose weights were trained from those in ``initial``: the weights anew, all else as it is there.

    Updates of DPO are small: at a rate of 1e-6 most of them are less than bfloat16 can tell apart. So weights are
    float32 whatever the base's are; the configuration goes on naming the base's precision, in which servers load them.
    """
    copy_all_but_weights(initial, folder)
    if (dtype := weights_dtype(initial)) is not None:
        keep_dtype(folder, dtype)
    save_weights(model, folder)
    _carry_over(model, initial, folder)


def _carry_over(model: Any, initial: Path, folder: Path) -> None:
    """Keep what :func:`carried` names. An index says which file holds which weight."""
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    names = weight_names(initial) - weight_names(folder)
    kept: dict[str, Any] = {}
    for file in sorted(initial.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            kept |= {name: tensors.get_tensor(name) for name in carried(patterns, names & set(tensors.keys()))}
    if not kept:
        return
    save_file(kept, folder / "untrained.safetensors", {"format": "pt"})
    places: dict[str, str] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            places |= dict.fromkeys(tensors.keys(), file.name)
    index = {"metadata": {}, "weight_map": places}
    (folder / _INDEX).write_text(json.dumps(index, indent=2, sort_keys=True), encoding="utf-8")


def write_weights(folder: Path | None, sizes: Mapping[str, int], get: Callable[[str], Tensor | None]) -> None:
    """Write weights file by file, so that no more than one file's are in memory, at most an eighth of all.

    Args:
        folder: None for workers that only take part in bringing the weights together.
        sizes: of all weights in bytes, by name, in the order in which they are asked for.
        get: gives a weight in main memory; on workers that do not write, None.
    """
    files = _files(sizes)
    places: dict[str, str] = {}
    for number, names in enumerate(files, 1):
        found = {name: get(name) for name in names}
        file = f"model-{number:05d}-of-{len(files):05d}.safetensors" if len(files) > 1 else "model.safetensors"
        places |= dict.fromkeys(names, file)
        if folder is not None:
            save_file({name: value.contiguous() for name, value in found.items() if value is not None}, folder / file,
                      {"format": "pt"})  # fmt: skip
    if folder is not None and len(files) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
        (folder / _INDEX).write_text(json.dumps(index, indent=2, sort_keys=True), encoding="utf-8")


def _files(sizes: Mapping[str, int]) -> list[list[str]]:
    """Names by file. A file holds an eighth of all, between 64 MiB and 4 GiB, or a single weight that is larger."""
    most = min(max(sum(sizes.values()) // 8, _SMALLEST), _LARGEST)
    files: list[list[str]] = [[]]
    room = most
    for name, size in sizes.items():
        if size > room and files[-1]:
            files.append([])
            room = most
        files[-1].append(name)
        room -= size
    return files


def carried(patterns: Iterable[str], names: Iterable[str]) -> list[str]:
    """Weights of a base that its family's model does not load, such as layers that predict several tokens at once:
    servers use them, so policies keep them."""
    return [name for name in names if any(re.search(pattern, name) for pattern in patterns)]


def save_weights(model: Any, folder: Path) -> None:
    """Write a model's weights, and nothing else, under the names that its family's files have."""
    model.generation_config = GenerationConfig()  # a base's own may be such that transformers refuses to save it
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        model.float().save_pretrained(scratch)
        for pattern in WEIGHTS:
            for file in Path(scratch).glob(pattern):
                file.rename(folder / file.name)


def weight_names(folder: Path) -> set[str]:
    """Names of the weights in a folder's files."""
    names: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            names |= set(tensors.keys())
    return names


def weights_dtype(folder: Path) -> str | None:
    """The precision of most of a folder's weights; None if it is none of the usual ones."""
    kinds: list[str] = []
    for file in sorted(folder.glob("*.safetensors"))[:1]:
        with safe_open(file, framework="pt") as tensors:
            kinds += [tensors.get_slice(name).get_dtype() for name in tensors.keys()]  # noqa: SIM118 - not a dict
    return _NAMES.get(max(set(kinds), key=kinds.count)) if kinds else None
