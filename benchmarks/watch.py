"""A command in a process of its own, with the seconds it takes and the memory that it and its children hold."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil

from benchmarks.setup import ROOT

_EVERY = 0.25
"""Seconds between two looks at the memory."""


@dataclass
class Peak:
    """The highest sums over all processes of a tree, in GiB."""

    resident: float = 0.0
    """As RSS, which counts a page again in every process that maps it."""
    private: float = 0.0
    """Without pages of files and of shared memory."""

    def look(self, pid: int) -> None:
        resident = private = 0
        with contextlib.suppress(psutil.Error):  # over meanwhile
            parent = psutil.Process(pid)
            for process in [parent, *parent.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    memory = process.memory_info()
                    resident += memory.rss
                    private += memory.rss - memory.shared
        self.resident = max(self.resident, resident / 2**30)
        self.private = max(self.private, private / 2**30)


@dataclass
class Watched:
    done: subprocess.CompletedProcess[str]
    seconds: float
    peak: Peak


def watch(command: Sequence[str], environment: Mapping[str, str]) -> Watched:
    """Run a command in the repository's folder until it ends; a failure is the caller's to see."""
    started = time.monotonic()
    peak, over = Peak(), threading.Event()
    with subprocess.Popen(
        command, env=dict(environment), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:

        def sample() -> None:
            while not over.wait(_EVERY):
                peak.look(process.pid)

        sampler = threading.Thread(target=sample, daemon=True)
        sampler.start()
        try:
            stdout, stderr = process.communicate()
        finally:
            over.set()
            sampler.join()
    done = subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
    return Watched(done, time.monotonic() - started, peak)
