"""Locks among the processes of one machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def lock(scratch: Path, name: str, timeout: float = -1) -> Iterator[bool]:
    """Hold a lock of a store's ``scratch`` folder; it goes when its holder dies. Yields whether it was had within
    ``timeout`` seconds (-1: wait for ever)."""
    path = scratch / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(path)
    try:
        held.acquire(timeout=timeout)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        held.release()
