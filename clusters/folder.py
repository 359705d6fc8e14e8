"""The spec's folder on its way to a cluster that does not see it."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

from stages.base import StageError

_NOT_SENT = {"__pycache__"}


def files(folder: Path, bound: float = math.inf) -> list[Path]:
    """The files that travel, in order: all but those with a name, or in a folder with one, that begins with a dot,
    caches of Python, virtual environments, and links that lead out of the folder. So no ``.env`` or ``.git`` does.

    Raises:
        StageError: together they have more than ``bound`` bytes, or one cannot be read, or its name is no text.
    """
    found: list[tuple[int, Path]] = []
    total = 0
    for file in _walk(folder):
        try:
            str(file).encode()
            size = file.stat().st_size
        except UnicodeEncodeError:
            raise StageError(f"the spec's folder travels with the job, but the name of {file!r} is no text") from None
        if not os.access(file, os.R_OK):
            raise StageError(f"the spec's folder travels with the job, but {file} cannot be read")
        found.append((size, file))
        total += size
        if total > bound:
            largest = ", ".join(f"{path.relative_to(folder)} ({_mib(size)})" for size, path in sorted(found)[:-4:-1])
            raise StageError(
                f"the spec's folder {folder} travels with the job and holds more than {_mib(bound)}: {largest}. Put "
                "large files into a bucket, or into a folder that both sides see, and name them by their full path"
            )
    return [file for _, file in found]


def pack(folder: Path, archive: Path, bound: float) -> None:
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
        folders[:] = sorted(name for name in folders if _is_sent(name) and not Path(place, name, "pyvenv.cfg").exists())
        for file in (Path(place, name) for name in sorted(names) if _is_sent(name)):
            if file.is_file() and file.resolve().is_relative_to(folder.resolve()):
                yield file


def _is_sent(name: str) -> bool:
    return not name.startswith(".") and name not in _NOT_SENT


def _mib(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"
