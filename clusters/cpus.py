"""How many CPUs this process may use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def usable_cpus(groups: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """The cores that this process may run on or, where control groups limit its time, as many as the lowest limit
    keeps busy, the last one partly; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(limit) for limit in _limits(groups, membership))]))


def _limits(groups: Path, membership: Path) -> Iterator[float]:
    """The limits of this process's control groups, of either version, and of those around them, in CPUs. A container
    sees its own group as the root, while the path may be that outside: folders that are not there are passed over."""
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return  # not Linux
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = groups / "cpu" if controllers else groups
        within = Path(path.lstrip("/"))
        for folder in (root / within, *(root / parent for parent in within.parents)):
            try:
                if controllers:
                    quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
                else:
                    quota, period = (folder / "cpu.max").read_text().split()
                limit = float(quota) / float(period)
            except (OSError, ValueError, ZeroDivisionError):
                continue  # no such folder, or "max": no limit
            if limit > 0:
                yield limit
