"""The files of a model's folder: which are weights, and what else goes into every policy made from it, byte for byte.

Configuration, tokenizer and chat templates are never written anew: another version of a library would write them in a
form that the servers which load the base do not know. Imports nothing heavy.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

CONFIG = "config.json"
_LONGEST_HEADER = 100_000_000  # as in the format's own library
_TOKENIZER_CONFIG = "tokenizer_config.json"
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_TOKENIZER = (
    "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "*.tiktoken",
    "*.model", "chat_template.*", "additional_chat_templates/*.jinja",
)  # fmt: skip
COPIED = (*WEIGHTS, *_TOKENIZER, "*.json", "*.jinja", "*.txt", "*.md", "LICENSE*", "NOTICE*")
"""What is taken from a base model's folder. Weights in other formats, and code, can run when they are read."""
_TEMPLATES = ("chat_template.*", "additional_chat_templates/*.jinja")


def copy_model(source: Path, target: Path) -> None:
    """Copy a model with all that belongs to it."""
    _copy(source, target, COPIED)


def copy_all_but_weights(source: Path, target: Path) -> None:
    _copy(source, target, COPIED, WEIGHTS)


def has_tokenizer(folder: Path) -> bool:
    """Whether an adapter's folder comes with a tokenizer or a chat template of its own."""
    return any(_matching(folder, _TOKENIZER))


def copy_tokenizer(source: Path, target: Path) -> None:
    """Put an adapter's tokenizer, its chat templates or both in the place of the model's.

    A tokenizer's configuration may hold the chat template; then the model's own files of templates go, which would
    count instead.
    """
    inside = template_of(target)
    if any(_matching(source, _TEMPLATES)) or template_of(source):
        inside = None
        for file in _matching(target, _TEMPLATES):
            file.unlink()
    _copy(source, target, _TOKENIZER)
    if inside and not template_of(target):  # the adapter's configuration has taken its place, without a template
        _write(target / _TOKENIZER_CONFIG, {**_read(target / _TOKENIZER_CONFIG), "chat_template": inside})


def template_of(folder: Path) -> Any:
    """The chat template that ``tokenizer_config.json`` holds: text, a list of named ones, or nothing."""
    file = folder / _TOKENIZER_CONFIG
    return _read(file).get("chat_template") if file.is_file() else None


def weights_header(file: Path) -> dict[str, Any]:
    """What a safetensors file says about its weights, by name; empty where it is none, such as a Git LFS pointer."""
    with file.open("rb") as data:
        length = int.from_bytes(data.read(8), "little")
        if not 2 <= length <= min(file.stat().st_size - 8, _LONGEST_HEADER):
            return {}
        try:
            found: dict[str, Any] = json.loads(data.read(length))
        except ValueError:
            return {}
    return {name: about for name, about in found.items() if name != "__metadata__"}


def remove_weights(folder: Path) -> None:
    for file in _matching(folder, WEIGHTS):
        file.unlink()


def keep_dtype(folder: Path, dtype: str) -> None:
    """Name the precision of a base's weights in its configuration, if it does not: trained weights are stored in
    float32, and whoever loads them by the configuration gets them in the precision that the base has."""
    config = _read(folder / CONFIG)
    if not {"dtype", "torch_dtype"} & config.keys():
        _write(folder / CONFIG, {**config, "torch_dtype": dtype})


def name_for_older_readers(folder: Path) -> None:
    """Add the names that transformers 4 has for what transformers 5 wrote, so that servers with either load it."""
    config = _read(folder / CONFIG)
    older = {"torch_dtype": config.get("dtype"), "rope_theta": config.get("rope_parameters", {}).get("rope_theta")}
    _write(folder / CONFIG, config | {name: value for name, value in older.items() if value is not None})
    tokenizer = _read(folder / _TOKENIZER_CONFIG)
    if tokenizer.get("tokenizer_class") == "TokenizersBackend":
        kept = {
            name: value for name, value in tokenizer.items() if name not in ("backend", "is_local", "local_files_only")
        }
        _write(folder / _TOKENIZER_CONFIG, kept | {"tokenizer_class": "PreTrainedTokenizerFast"})


def _copy(source: Path, target: Path, patterns: tuple[str, ...], but: tuple[str, ...] = ()) -> None:
    left_out = set(_matching(source, but))
    for file in _matching(source, patterns):
        if file not in left_out:
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)


def _matching(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})


def _read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _write(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
