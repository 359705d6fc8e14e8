"""What is sent to a cluster: the same command with the same spec, whatever the cluster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class JobSpec:
    """One ``rondo`` command to be run on a cluster.

    ``command`` is an argument vector, never a shell line; paths in it are relative to ``folder``.
    """

    name: str
    """The pipeline's name: lower-case letters, digits and hyphens, at most 63."""
    command: tuple[str, ...]
    folder: Path
