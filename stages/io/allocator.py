"""How the C library keeps freed memory, which on CPU decides how long it takes to allocate a large temporary."""

from __future__ import annotations

import ctypes
import gc
import sys
from typing import Any

# The numbers of glibc's mallopt(3) settings.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
_KEPT = 2**31 - 1
_GROWTH = 64 * 2**20
_LARGE, _MAPPINGS = 2**20, 65_536


def keep_freed_memory() -> None:
    """Make freed memory stay with the process and be reused.

    Tensors of several megabytes are made and freed in every layer. By default each is mapped afresh and returned, and
    the kernel has to clear its pages one by one: as measured, training takes up to twice as long. Does nothing where
    the C library is not glibc.
    """
    if (libc := _glibc()) is not None:
        for setting, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _KEPT), (_TOP_PAD, _GROWTH)):
            libc.mallopt(setting, value)


def return_freed_memory() -> None:
    """Make every large tensor's memory go back to the machine as soon as it is freed, where memory counts for more than
    time: what stays with the process in pieces can be as much as what is used."""
    if (libc := _glibc()) is not None:
        settings = ((_MMAP_MAX, _MAPPINGS), (_MMAP_THRESHOLD, _LARGE), (_TRIM_THRESHOLD, _LARGE), (_TOP_PAD, 0))
        for setting, value in settings:
            libc.mallopt(setting, value)


def give_back_memory() -> None:
    """Collect garbage and return freed memory to the machine: at the end of a stage, in a process that waits for the
    next."""
    gc.collect()
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _glibc() -> Any:
    """The C library if it is glibc, else None."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.malloc_trim, libc.mallopt  # noqa: B018
    except (OSError, AttributeError):
        return None
    return libc
