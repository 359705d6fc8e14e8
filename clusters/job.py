"""What is sent to a cluster: the same command with the same spec, whatever the cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class JobSpec:
    """One ``rondo`` command to be run on a cluster.

    ``command`` is an argument vector, never a shell line; paths in it are relative to ``folder``, the spec's folder,
    which travels with the job or is in the image. ``secrets`` names environment variables whose values are passed by
    reference; the values are in no manifest, log or record.
    """

    name: str
    """The pipeline's name: lower-case letters, digits and hyphens, at most 63."""
    command: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
