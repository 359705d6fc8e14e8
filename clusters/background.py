"""Jobs on this machine: a run in the background, which goes on when the terminal is closed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from clusters.job import JobSpec, JobStatus, NoSuchJob, State, known_jobs
from clusters.local import KNOWS, LocalCluster, machine
from stages.io.nodes import Node

_STATES: dict[int, State] = {0: "done", 130: "stopped"}
_TRIES = 3
_SECONDS = 10.0
"""For which an interrupted run may take to end before it is interrupted again."""
_WRAPPER = 'trap : INT TERM; "$@"; echo $? > "$0.part"; mv "$0.part" "$0"'
"""Runs a command and leaves its exit code in a file; an interrupt reaches the command, not the shell around it."""


class Background:
    """Runs jobs as processes of this machine. Each has a lock that its processes hold as long as one of them lives."""

    knows = KNOWS

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster

    def machines(self) -> list[Node]:
        return [machine(self._cluster)]

    def show(self, job: JobSpec) -> str:
        return f"cd {shlex.quote(str(job.folder))}\n{shlex.join(job.here)} &\n"

    def submit(self, job: JobSpec) -> str:
        place = self._place(job.id)
        place.mkdir(parents=True)
        command = [sys.executable, "-P", "-m", "pipelines", *job.here[1:]]
        with (place / "log").open("wb") as log, (place / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # A shell that starts this command in the background has it ignore interrupts, and so would the job.
            ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                process = subprocess.Popen(
                    ["/bin/sh", "-c", _WRAPPER, str(place / "code"), *command], stdin=subprocess.DEVNULL, stdout=log,
                    stderr=subprocess.STDOUT, cwd=job.folder, start_new_session=True, pass_fds=[lock.fileno()],
                )  # fmt: skip
            finally:
                signal.signal(signal.SIGINT, ignored)
        (place / "process.json").write_text(json.dumps({"group": process.pid}))
        return job.id

    def status(self, job: str) -> JobStatus:
        place = self._known(job)
        alive = self._alive(place)
        if (code := place / "code").exists():
            number = int(code.read_text() or -1)  # empty: the disk was full
            return JobStatus(_STATES.get(number, "failed"), "" if number in _STATES else f"exit code {number}")
        if alive:
            return JobStatus("running")
        if (place / "stopped").exists():  # before it had begun
            return JobStatus("stopped")
        return JobStatus("failed", "its process was killed")

    def logs(self, job: str) -> str:
        return (self._known(job) / "log").read_text(encoding="utf-8", errors="replace")

    def stop(self, job: str) -> None:
        """Interrupt it as Ctrl-C would, and again if nothing comes of it: a signal may be lost in the moment in which a
        process starts, or in a destructor."""
        place = self._known(job)
        if not self._alive(place):
            return
        group = json.loads((place / "process.json").read_text())["group"]
        (place / "stopped").touch()
        for _ in range(_TRIES):
            until = time.monotonic() + _SECONDS
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGINT)
            while self._alive(place) and time.monotonic() < until:
                time.sleep(0.1)
            if not self._alive(place):
                return

    def forget(self, job: str) -> None:
        """Delete what is left of a job that has ended."""
        shutil.rmtree(self._known(job), ignore_errors=True)

    def _place(self, job: str) -> Path:
        return known_jobs() / "local" / job

    def _known(self, job: str) -> Path:
        place = self._place(job)
        if Path(job).name != job or not (place / "process.json").exists():
            raise NoSuchJob(f"{job}: no such job was started on this machine; rondo jobs lists those sent")
        return place

    def _alive(self, place: Path) -> bool:
        with (place / "lock").open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False
