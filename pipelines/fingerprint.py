"""Identity: canonical JSON, hashed. What cannot be written down deterministically is refused."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from stages.readers import DataFile, identity

_CHUNK = 1 << 20


def canonical(value: Any, where: str = "payload") -> Any:
    """``value`` as plain JSON data.

    Raises:
        TypeError: a value (named by its path) has no deterministic JSON form.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{where}: {value} has no JSON form; use a finite number")
        return value
    if isinstance(value, list | tuple):
        return [canonical(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where}: key {key!r} is a {type(key).__name__}; use strings as keys")
        return {key: canonical(item, f"{where}.{key}") for key, item in value.items()}
    raise TypeError(
        f"{where}: a {type(value).__name__} has no deterministic form; use text, numbers, booleans, lists or mappings"
    )


def fingerprint(payload: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the payload's canonical JSON: keys sorted, no white space, UTF-8."""
    text = json.dumps(canonical(payload), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_path(path: Path) -> str:
    """SHA-256 of a file's bytes, or of a folder's relative names and bytes. Its location does not count."""
    if path.is_file():
        return _hash_file(path)
    names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
    return fingerprint({name: _hash_file(path / name) for name in names})


def data_identity(file: DataFile) -> str:
    """A data file's content (for a remote one, what its file system says about it) and its suffixes, which decide how
    it is read."""
    return fingerprint({"content": identity(file), "suffixes": "".join(PurePosixPath(file.uri).suffixes)})


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
