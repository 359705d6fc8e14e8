"""How the C library keeps memory that was freed, which on CPU decides how long a large temporary takes to make."""

from __future__ import annotations

import ctypes
import sys

# The numbers that glibc's mallopt(3) knows its settings by.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_KEPT = 2**31 - 1
_GROWTH = 64 * 2**20


def keep_freed_memory() -> None:
    """Have freed memory stay with the process and be used again.

    Tensors of megabytes are made and freed in every layer. By default each is mapped afresh and given back, and the
    kernel has to clear its pages one by one: measured, training takes up to twice as long. Does nothing where
    the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    for setting, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _KEPT), (_TOP_PAD, _GROWTH)):
        mallopt(setting, value)
