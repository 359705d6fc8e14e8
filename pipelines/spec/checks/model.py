"""What stops a base model or its adapter from being used, as far as its files show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipelines.spec.model_path import adapter_path, local_path
from pipelines.spec.models import CHAMPION
from stages.policy.adapter_settings import ADAPTER_CONFIG, read_settings
from stages.policy.config import MERGEABLE, ModelSource
from stages.policy.families import untrainable

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")


def reward_problems(source: ModelSource, base: Path) -> list[str]:
    """What stops this source from being used as a reward model, as far as its files show."""
    if source.model.startswith(CHAMPION):
        return ["a champion is a policy, which writes answers; a reward model is a ...ForSequenceClassification"]
    if found := _problems(source, base):
        return found
    config = configuration(source, base)
    kinds = config.get("architectures") or []
    if config and not any(str(kind).endswith("ForSequenceClassification") for kind in kinds):
        return [f"is no reward model: config.json names {kinds}, expected a ...ForSequenceClassification"]
    outputs = len(config.get("id2label") or ()) or config.get("num_labels", 2)
    return [f"a reward model has one output (num_labels), this one has {outputs}"] if config and outputs != 1 else []


def problems(source: ModelSource, base: Path) -> list[str]:
    """What stops this source from being used, as far as can be told without loading or downloading it."""
    unfit = untrainable(configuration(source, base))
    return [*_problems(source, base), *([unfit] if unfit else [])]


def _problems(source: ModelSource, base: Path) -> list[str]:
    if source.model.startswith(CHAMPION):
        return []  # a training has made it
    try:
        path = local_path(source, base)
    except (ValueError, OSError, RuntimeError) as error:
        return [str(error)]
    if path is None:
        return [] if source.revision else [f"{source.model} is a hub id; name its revision (a commit, tag or branch)"]
    if not path.exists():
        return [f"no such folder: {path} (and not a hub id of the form owner/name)"]
    if path.is_file():
        return [] if path.suffix == ".gguf" else [f"{path.name}: expected a folder or a .gguf file"]
    adapter = adapter_path(source.adapter, base) if source.adapter is not None else None
    return _folder_problems(path, adapter)


def configuration(source: ModelSource, base: Path) -> dict[str, Any]:
    """What the config.json of a model in a local folder says; empty where there is none to be read."""
    try:
        path = local_path(source, base)
        found: Any = json.loads((path / "config.json").read_text(encoding="utf-8")) if path is not None else {}
    except (ValueError, OSError, RuntimeError):
        return {}
    return found if isinstance(found, dict) else {}


def adapter_problems(source: ModelSource, base: Path) -> list[str]:
    """What stops the source's adapter from being merged, as far as can be told without loading it."""
    if source.adapter is None:
        return []
    if source.model.startswith(CHAMPION):
        return ["a champion is taken as it is; leave the adapter out"]
    try:
        path = adapter_path(source.adapter, base)
        if not path.is_dir():
            return [f"no such folder: {path}"]
        settings = read_settings(path)
    except (ValueError, OSError, RuntimeError) as error:
        return [str(error)]
    if settings["peft_type"] not in MERGEABLE:
        return [f"{settings['peft_type']} cannot be merged into a model; adapters that can: {', '.join(MERGEABLE)}"]
    return []


def _folder_problems(path: Path, adapter: Path | None) -> list[str]:
    if (path / ADAPTER_CONFIG).is_file():
        if (path / "config.json").is_file():
            return [f"{path} holds a model and an adapter ({ADAPTER_CONFIG}); move the adapter to a folder of its own"]
        return [
            f"{path} is an adapter ({ADAPTER_CONFIG} without config.json), not a model; give its base as policy.model "
            "and this folder as policy.adapter"
        ]
    found = []
    if not (path / "config.json").is_file():
        found.append(f"{path} has no config.json: not a model in Hugging Face format")
    weights = sorted(path.glob("*.safetensors"))
    if pointer := next((file.name for file in weights if _lfs_pointer(file)), None):
        found.append(f"{path / pointer} is a Git LFS pointer, not weights; fetch them with git lfs pull")
    if not weights:
        found.append(f"{path} has no *.safetensors weights (other formats can run code when read; convert them first)")
    folders = [path] if adapter is None else [path, adapter]  # an adapter brings its own along
    if not any((folder / name).is_file() for folder in folders for name in _TOKENIZERS):
        found.append(f"{path} has no tokenizer ({', '.join(_TOKENIZERS)}); save the model's tokenizer there")
    if not any(map(_has_chat_template, folders)):
        found.append(f"{path} has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json)")
    return found


def _lfs_pointer(file: Path) -> bool:
    with file.open("rb") as data:
        return data.read(24) == b"version https://git-lfs."


def _has_chat_template(path: Path) -> bool:
    if (path / "chat_template.jinja").is_file() or (path / "chat_template.json").is_file():
        return True
    try:
        config: Any = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and bool(config.get("chat_template"))
