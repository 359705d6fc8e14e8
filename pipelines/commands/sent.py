"""The jobs that this user has sent, each in a file of its own, with what its cluster file said: no secret is in one."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from clusters.job import JobSpec, JobStatus, State, known_jobs
from clusters.kinds import KINDS, Cluster, Launcher, launcher
from pipelines.spec import clusterfile
from stages.base import StageError


@dataclass(frozen=True)
class Sent:
    """A job that was sent to a cluster."""

    job: str
    """Its name on the cluster."""
    name: str
    spec: str
    cluster: str
    """The cluster's file."""
    settings: dict[str, Any]
    """What the file said."""
    folder: str
    """Where it was submitted."""
    submitted: str
    state: str = ""
    """How it ended, once that is known; the cluster may forget it, or be gone itself."""
    detail: str = ""

    @cached_property
    def launcher(self) -> Launcher:
        try:
            settings = KINDS[self.settings["kind"]].model_validate(self.settings)
        except (KeyError, ValidationError):
            raise StageError(f"{self.job} was sent by another version of Rondo, to {self.cluster}") from None
        return launcher(settings, Path(self.folder))

    @property
    def file(self) -> Path:
        # Two clusters may give the same number.
        which = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:8]
        return known_jobs() / f"{self.settings['kind']}-{self.job}-{which}.json"

    def status(self) -> JobStatus:
        """How the job is now.

        Raises:
            StageError: its cluster does not answer.
        """
        if self.state:
            return JobStatus(cast(State, self.state), self.detail)
        status = self.launcher.status(self.job)
        if status.ended and status.state != "gone":  # it may be another context of kubectl that does not know it
            self.end(status)
        return status

    def end(self, status: JobStatus) -> None:
        """Note how it ended, if it was sent from here."""
        if self.submitted:
            remember(replace(self, state=status.state, detail=status.detail))


def prepare() -> None:
    """Make the folder of the records, for this user alone.

    Raises:
        StageError: it cannot be.
    """
    try:
        known_jobs().mkdir(parents=True, exist_ok=True, mode=0o700)
        tempfile.TemporaryFile(dir=known_jobs()).close()
    except OSError as error:
        raise StageError(f"jobs are remembered in {known_jobs()}, which cannot be written: {error.strerror}") from None


def remember(sent: Sent) -> None:
    prepare()
    part = sent.file.with_suffix(".part")
    part.touch(mode=0o600)
    part.write_text(json.dumps(asdict(sent)), encoding="utf-8")
    part.replace(sent.file)


def of_job(job: JobSpec, name: str, cluster: Cluster, file: Path) -> Sent:
    """The record of a job that the cluster calls ``name``."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    settings = cluster.model_dump(mode="json")
    return Sent(name, job.name, job.spec, str(file), settings, str(job.folder), now)


def known() -> list[Sent]:
    """The jobs that were sent, the oldest first; a file of another version of Rondo is left out."""
    found = []
    for file in known_jobs().glob("*.json"):
        try:
            found.append(Sent(**json.loads(file.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError):
            continue
    return sorted(found, key=lambda sent: sent.submitted)


def find(job: str, cluster: Path | None, whole: bool = False) -> Sent:
    """The job of a name, or, unless it has to be the ``whole`` name, the one whose name contains it; with a ``cluster``
    file also one that was sent from elsewhere. A job's number is always given whole.

    Raises:
        StageError: there is none, or there are several.
        SpecError: the cluster file is wrong.
    """
    if cluster is not None:
        settings = clusterfile.load(cluster).model_dump(mode="json")
        for sent in known():
            if sent.job == job and sent.settings == settings:
                return sent
        return Sent(job, job, "", str(cluster), settings, str(Path.cwd()), "")
    jobs = known()
    found = [sent for sent in jobs if sent.job == job]
    if not found and not whole:
        found = [sent for sent in jobs if job in sent.job and not sent.job.isdigit()]
    if len(found) == 1:
        return found[0]
    if not found:
        raise StageError(
            f"{job}: no such job was sent from here; rondo jobs lists those that were. For one of elsewhere give "
            "the cluster: --cluster FILE"
        )
    places = ", ".join(f"{sent.job} ({sent.cluster})" for sent in found)
    raise StageError(f"{job}: {len(found)} jobs match: {places}; give the whole name, or --cluster FILE")
