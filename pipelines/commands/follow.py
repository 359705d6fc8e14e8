"""A job's output as it comes, whatever the cluster."""

from __future__ import annotations

import sys
import time

from clusters.job import JobStatus
from clusters.kinds import Launcher
from stages.base import StageError


def follow(launcher: Launcher, job: str, every: float, patience: float) -> JobStatus:
    """Print what a job prints, from its beginning, until it has ended. Why it is pending is said on standard error.

    Raises:
        StageError: the cluster has not answered for ``patience`` seconds.
    """
    shown, waited = "", ""
    answered: float | None = None
    while True:
        try:
            status = launcher.status(job)
            text = "" if status.state in ("pending", "gone") else launcher.logs(job)
            answered = time.monotonic()
        except StageError:
            # A tunnel or a head that is away for a moment does not end the job.
            if answered is None or time.monotonic() - answered > patience:
                raise
            time.sleep(every)
            continue
        if status.state == "pending" and (reason := f"pending: {status.detail}") != waited:
            print(reason.rstrip(": "), file=sys.stderr, flush=True)
            waited = reason
        if not text.startswith(shown) and text:  # a job that was started again has a log of its own
            print("\nthe job was started again", file=sys.stderr, flush=True)
            shown = ""
        if len(text) > len(shown):
            print(text[len(shown) :], end="", flush=True)
            shown = text
        if status.ended:
            return status
        time.sleep(every)
