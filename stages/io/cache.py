"""This node's copies of what is in buckets: fetched once, and given up when room is needed, the oldest first.

A copy that a process of this node uses is never deleted: whoever uses it holds a shared lock on its folder, which the
kernel gives back when the process ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

_FOLDER = "RONDO_CACHE"
_BOUND = "RONDO_CACHE_GIB"
_USED = ".used"
"""In every folder of copies: who uses them holds a lock on it, its time is that of the last use."""
_FETCHING = ".fetching"
OWN = (_USED, _FETCHING)
"""Files that are no copies."""
_SECONDS = 30.0
"""Between two looks at what all copies take."""
_held: dict[Path, int] = {}
_guard = threading.Lock()
_looked = 0.0


def folder() -> Path:
    """``RONDO_CACHE``, or a folder in the user's home."""
    return Path(os.environ.get(_FOLDER) or Path.home() / ".cache" / "rondo")


def bound() -> float:
    """Bytes that copies may take (``RONDO_CACHE_GIB``, 100 by default)."""
    return float(os.environ.get(_BOUND, "100")) * 2**30


def fetch(root: Path, place: str, name: str, size: int, download: Callable[[Path], None]) -> Path:
    """The copy of a file in the folder ``place``, made by ``download`` if this node has none; whoever else wants it
    meanwhile waits."""
    copies = root / place
    hold(root, copies)
    file = copies / name
    if _whole(file, size):
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(copies / _FETCHING):
        if _whole(file, size):
            return file
        partial = file.with_name(f".{file.name[:100]}.{uuid.uuid4().hex[:8]}")
        try:
            download(partial)
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
    _look(root)
    return file


def hold(root: Path, copies: Path) -> None:
    """Keep this process's folder of copies from being deleted until :func:`release`."""
    with _guard:
        if copies in _held:
            return
        with FileLock(_eviction(root)):
            copies.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(copies / _USED, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        os.utime(descriptor)
        _held[copies] = descriptor


def release() -> None:
    """This process uses none of its copies any more."""
    with _guard:
        for descriptor in _held.values():
            os.close(descriptor)
        _held.clear()


def evict(root: Path) -> None:
    """Delete what was not used for the longest time, until the rest is within the bound; what is in use stays."""
    with FileLock(_eviction(root)):  # one at a time: none finds that another has deleted what it looks at
        sizes = {used.parent: _size(used.parent) for used in root.rglob(_USED)}
        total = sum(sizes.values())
        for copies in sorted(sizes, key=lambda each: (each / _USED).stat().st_mtime):
            if total <= bound():
                return
            descriptor = os.open(copies / _USED, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            else:
                shutil.rmtree(copies, ignore_errors=True)
                total -= sizes[copies]
            finally:
                os.close(descriptor)


def _eviction(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    return root / ".eviction"


def _look(root: Path) -> None:
    global _looked  # once in a while is enough, since it takes a while where there are many copies
    if time.monotonic() - _looked > _SECONDS:
        _looked = time.monotonic()
        evict(root)


def _whole(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size


def _size(copies: Path) -> int:
    total = 0
    for file in copies.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a download that has got its name meanwhile
            total += file.stat().st_size
    return total
