"""The user's own code that a spec names: what it is, and what of it has to travel to other machines."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.fingerprint import fingerprint, hash_path


def plugins(config: Any) -> dict[str, str]:
    """The user's own code that a configuration names (``use: "module:name"``), each with its source's hash."""
    found: dict[str, str] = {}
    if isinstance(config, Mapping):
        use = config.get("use")
        if isinstance(use, str) and ":" in use:
            found[use] = plugin_hash(use)
        for key, value in config.items():
            if key != "options":  # a plugin's own, whatever it calls them
                found |= plugins(value)
    elif isinstance(config, list | tuple):
        for value in config:
            found |= plugins(value)
    return found


def plugin_hash(use: str) -> str:
    """SHA-256 of the source of the module that ``module:name`` names, or of the whole package that contains it.

    Nothing is imported. Other modules that it imports do not count.

    Raises:
        ImportError: there is no such module, or it has no source file.
    """
    module = use.partition(":")[0].partition(".")[0]
    spec = importlib.util.find_spec(module)
    if spec is None:
        raise ImportError(f"no module {module!r} beside the spec, in the current folder or installed")
    if not spec.origin or not Path(spec.origin).is_file():
        raise ImportError(f"the module {module!r} has no source file")
    if not spec.submodule_search_locations:
        return hash_path(Path(spec.origin))
    folder = Path(spec.origin).parent
    return fingerprint({file.relative_to(folder).as_posix(): hash_path(file) for file in folder.rglob("*.py")})


def module_names(config: Any) -> list[str]:
    """The modules, or the packages around them, that a configuration names."""
    return sorted({use.partition(":")[0].partition(".")[0] for use in plugins(config)})


def travelling(names: Sequence[str], folders: Sequence[Path]) -> list[Path]:
    """The files and packages of those modules that stand in one of the ``folders`` and are installed nowhere, with the
    single files beside them, which they may import. A file that an installed module hides stays: elsewhere it would
    hide that."""
    found: set[Path] = set()
    for name in names:
        spec = importlib.util.find_spec(name)
        assert spec is not None, name  # else it has no hash
        assert spec.origin is not None, name
        place = Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)
        if place.parent.resolve() in {folder.resolve() for folder in folders}:
            found |= {place, *(file for file in place.parent.glob("*.py") if _is_imported(file))}
    return sorted(found)


def _is_imported(file: Path) -> bool:
    """Whether this is the file of the module that has its name."""
    if not file.stem.isidentifier() or file.stem.startswith("__"):
        return False
    spec = importlib.util.find_spec(file.stem)
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve() == file.resolve()
