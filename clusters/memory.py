"""How much main memory this process may use."""

from __future__ import annotations

import os
from pathlib import Path


def usable_memory(groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes of this machine's memory or, where a control group limits it, of that limit; None if it is not known."""
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of version 2 and of version 1
        try:
            found = min(found, int((groups / name).read_text()))
        except (OSError, ValueError):
            continue  # no such group, or "max": no limit
    return found
