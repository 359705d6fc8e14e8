"""Where a base model is: a folder, a GGUF file in a package, or the hub. Nothing is loaded here."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from pipelines.spec.models import CHAMPION, HUB_ID, ChampionSource
from stages.policy.config import ModelSource


def local_path(source: ModelSource, base: Path) -> Path | None:
    """The folder or file that a local source means; None for a hub id, and a champion that was not looked up.

    Raises:
        ValueError: the package or the file in it is not there.
    """
    if isinstance(source, ChampionSource):
        return source.folder
    if source.model.startswith(CHAMPION):
        return None
    if source.model.startswith("pkg://"):
        return _in_package(source.model.removeprefix("pkg://"))
    path = base / Path(source.model).expanduser()
    if path.exists() or source.model.startswith((".", "/", "~")) or not HUB_ID.match(source.model):
        return path.resolve()
    return None


def is_local(source: ModelSource) -> bool:
    """Whether the source is certainly not a hub id."""
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


def adapter_path(adapter: str, base: Path) -> Path:
    return (base / Path(adapter).expanduser()).resolve()
