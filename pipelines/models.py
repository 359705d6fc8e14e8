"""Where a base model comes from: a folder, a GGUF file in a package, or the hub. Nothing is loaded here."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from pipelines.fingerprint import hash_path
from pipelines.plan import Source, Step
from pipelines.problems import Problem, SpecError
from pipelines.spec import HUB_ID, ModelSource
from stages.adapter_types import ADAPTER_CONFIG, MERGEABLE, read_settings
from stages.catalog import MATERIALISE, MaterialiseConfig

_COMMIT = re.compile(r"^[0-9a-f]{40}$")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")


def local_path(source: ModelSource, base: Path) -> Path | None:
    """The folder or file that a local source means; None for a hub id.

    Raises:
        ValueError: the package or the file in it is not there.
    """
    if source.model.startswith("pkg://"):
        return _in_package(source.model.removeprefix("pkg://"))
    path = base / Path(source.model).expanduser()
    if path.exists() or source.model.startswith((".", "/", "~")) or not HUB_ID.match(source.model):
        return path.resolve()
    return None


def is_local(source: ModelSource) -> bool:
    """Whether the source is surely not a hub id."""
    return not HUB_ID.match(source.model) or source.model.startswith((".", "/", "~", "pkg://"))


def _in_package(reference: str) -> Path:
    package, _, name = reference.partition("/")
    if not package.isidentifier() or package == "__main__":
        raise ValueError(f'expected "pkg://package/file.gguf", got "pkg://{reference}"')
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ValueError(f"the package {package!r} is not installed (pip install {package.replace('_', '-')})")
    folder = Path(spec.origin).parent
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        found = ", ".join(sorted(p.name for p in folder.glob("*.gguf"))) or "none"
        raise ValueError(f"no file {name!r} in the package {package!r}; GGUF files there: {found}")
    return path


def problems(source: ModelSource, base: Path) -> list[str]:
    """What stops this source from being used, as far as can be told without loading or downloading it."""
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
    return _folder_problems(path)


def adapter_problems(source: ModelSource, base: Path) -> list[str]:
    """What stops the source's adapter from being merged, as far as can be told without loading it."""
    if source.adapter is None:
        return []
    try:
        path = _adapter_path(source.adapter, base)
        if not path.is_dir():
            return [f"no such folder: {path}"]
        settings = read_settings(path)
    except (ValueError, OSError, RuntimeError) as error:
        return [str(error)]
    if settings["peft_type"] not in MERGEABLE:
        return [f"{settings['peft_type']} cannot be merged into a model; adapters that can: {', '.join(MERGEABLE)}"]
    return []


def _adapter_path(adapter: str, base: Path) -> Path:
    return (base / Path(adapter).expanduser()).resolve()


def _folder_problems(path: Path) -> list[str]:
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
    if not list(path.glob("*.safetensors")):
        found.append(f"{path} has no *.safetensors weights (other formats can run code when read; convert them first)")
    if not any((path / name).is_file() for name in _TOKENIZERS):
        found.append(f"{path} has no tokenizer ({', '.join(_TOKENIZERS)}); save the model's tokenizer there")
    if not _has_chat_template(path):
        found.append(f"{path} has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json)")
    return found


def _has_chat_template(path: Path) -> bool:
    if (path / "chat_template.jinja").is_file() or (path / "chat_template.json").is_file():
        return True
    try:
        config: Any = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and bool(config.get("chat_template"))


def base_step(source: ModelSource, base: Path) -> Step:
    """The step that makes the base policy's artifact.

    Raises:
        SpecError: a hub revision cannot be resolved to a commit.
    """
    path = local_path(source, base)
    inputs: dict[str, Step | Source] = {}
    if source.adapter is not None:
        adapter = _adapter_path(source.adapter, base)
        inputs["adapter"] = Source("adapter", adapter, hash_path(adapter))
    if path is not None:
        name = "model" if path.is_dir() else path.name
        inputs["source"] = Source(name, path, hash_path(path))
        return Step("base", MATERIALISE, MaterialiseConfig(), inputs)
    commit = _commit(source.model, source.revision or "main")
    return Step("base", MATERIALISE, MaterialiseConfig(hub=source.model, revision=commit), inputs)


def _commit(hub_id: str, revision: str) -> str:
    """The commit that a revision stands for now, from the hub or, offline, from its local cache."""
    if _COMMIT.match(revision):
        return revision
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:  # the snapshot's folder is named by its commit
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=["config.json"])).name
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        message = f"{hub_id} at {revision} was not found on the hub nor in its local cache: {reason}"
        raise SpecError([Problem("policy.revision", message)]) from None
