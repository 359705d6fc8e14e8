"""The spec's folder on its way to a cluster that does not see it."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

from stages.base import StageError

_NOT_SENT = {"__pycache__", "node_modules", "venv", "env"}


def files(folder: Path, bound: int) -> list[Path]:
    """The files that travel, in order: all but those whose name, or whose folder's, begins with a dot, and caches of
    Python. So no ``.env``, ``.git``, ``.venv`` or ``.rondo`` does.

    Raises:
        StageError: together they have more than ``bound`` bytes.
    """
    found: list[tuple[int, Path]] = []
    total = 0
    for file in _walk(folder):
        size = file.stat().st_size
        found.append((size, file))
        total += size
        if total > bound:
            largest = ", ".join(f"{path.relative_to(folder)} ({_mib(size)})" for size, path in sorted(found)[:-4:-1])
            raise StageError(
                f"the spec's folder {folder} travels with the job and holds more than {_mib(bound)}: {largest}. Put "
                "large files into a bucket, or into a folder that the cluster sees, and name them by their full path"
            )
    return [file for _, file in found]


def pack(folder: Path, archive: Path, bound: int) -> None:
    """Write the files that travel into a zip archive, the same files into the same bytes.

    Raises:
        StageError: they are too large.
    """
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as out:
        for file in files(folder, bound):
            entry = zipfile.ZipInfo(file.relative_to(folder).as_posix(), (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            out.writestr(entry, file.read_bytes())


def _walk(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _NOT_SENT)
        yield from (Path(place, name) for name in sorted(names) if not name.startswith(".") and _is_file(place, name))


def _is_file(place: str, name: str) -> bool:
    return Path(place, name).is_file()


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
