"""What is sent to a cluster: the same command with the same spec, whatever the cluster."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stages.base import StageError

State = Literal["pending", "running", "done", "failed", "stopped", "gone", "unknown"]
"""``gone``: the cluster does not know the job (any more); ``unknown``: it could not be asked."""
Command = Literal["run", "sweep", "schedule"]
_ENDED: frozenset[State] = frozenset({"done", "failed", "stopped", "gone"})


def known_jobs() -> Path:
    """Where this user's jobs are remembered."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "rondo" / "jobs"


@dataclass(frozen=True)
class JobSpec:
    """One ``rondo run``, ``rondo sweep`` or ``rondo schedule --once`` to be done on a cluster."""

    id: str
    """The pipeline's name with a random ending, at most 47, a letter first: what the job is called where Rondo may
    choose."""
    name: str
    """The pipeline's name: lower-case letters, digits and hyphens, at most 63."""
    spec: str
    """The spec as it was named: a file, relative to ``folder``, or a bundled recipe."""
    options: tuple[str, ...]
    """Of the command."""
    folder: Path
    """Where the job was submitted."""
    file: Path | None
    """The spec's file, whose folder travels to clusters that do not see it; None for a bundled recipe."""
    command: Command = "run"
    """The options of ``schedule`` begin with ``--once``: the cluster keeps the time."""

    @property
    def travels(self) -> Path | None:
        return self.file and self.file.parent

    @property
    def here(self) -> tuple[str, ...]:
        """The command in ``folder``, as an argument vector and never a shell line."""
        spec = f"./{self.spec}" if self.spec.startswith("-") else self.spec
        return ("rondo", self.command, spec, *self.options)

    @property
    def away(self) -> tuple[str, ...]:
        """The command in a copy of the spec's folder."""
        spec = self.spec if self.file is None else f"./{self.file.name}"
        return ("rondo", self.command, spec, *self.options)


@dataclass(frozen=True)
class JobStatus:
    state: State
    detail: str = ""
    """Why it is pending or has failed, in one line, where the cluster says so."""

    @property
    def ended(self) -> bool:
        return self.state in _ENDED


class NoSuchJob(StageError):
    """The cluster does not know the job."""
