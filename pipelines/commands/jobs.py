"""The commands about jobs on clusters: submit, jobs, logs, stop."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from pipelines.commands.common import JsonOption, SetOption, SpecArgument, plan_of, refuse, refuse_all

if TYPE_CHECKING:
    from clusters.job import JobStatus
    from pipelines.commands.sent import Sent

_EVERY = 1.0
"""Seconds between two looks at a job that is followed."""
_PATIENCE = 60.0
"""Seconds for which a cluster that does not answer is asked again while a job is followed."""
_ANSWER = 20.0
"""Seconds for which clusters may think about how their jobs are."""
_STOPPING = 60.0
"""Seconds for which the end of a job that was stopped is waited for."""

ClusterFile = Annotated[Path, typer.Option("--cluster", metavar="FILE", help="The cluster's file (docs/clusters.md).")]
OtherCluster = Annotated[
    Path | None, typer.Option("--cluster", metavar="FILE", help="Of a job that was sent from another machine.")
]
JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="A job's name, as rondo submit printed it, or enough of it.")
]
FollowOption = Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")]


def submit(
    spec: SpecArgument,
    cluster: ClusterFile,
    overrides: SetOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show what it prints until it has ended.")] = False,
    sweep: Annotated[bool, typer.Option("--sweep", help="Send a sweep of the spec instead of a run.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent, and send nothing.")] = False,
) -> None:
    """Send a run to a cluster as a job. It does there what rondo run (with --sweep: rondo sweep) does here.

    The job's name is printed; rondo jobs, logs and stop take it. A job that was cut off goes on from the last finished
    step when the same command is given again.

    Exit codes: 0 sent (with --follow: done), 1 the cluster refused it (it failed), 2 the spec, the cluster file or the
    usage is wrong.
    """
    from clusters.kinds import launcher, pinned
    from pipelines.commands import sent
    from pipelines.commands import submit as jobs
    from pipelines.spec import clusterfile
    from pipelines.spec.problems import SpecError
    from stages.base import StageError

    if dry_run and follow:
        refuse("--dry-run sends nothing that --follow could follow; give one of them")
    try:
        settings = clusterfile.load(cluster)
        loaded, _ = plan_of(spec, overrides, cluster=cluster, ask=not dry_run, sweep=sweep)
        if sweep and loaded.spec.sweep is None:
            refuse(f"{loaded.path}: has no sweep section (docs/sweeps.md)")
        file = cluster.absolute()
        job = jobs.job(loaded, overrides or (), settings, file, "sweep" if sweep else "run")
        if jobs.takes_along(settings):
            jobs.check_travels(loaded)
    except SpecError as error:
        refuse_all(error)
    except StageError as error:
        _fail(error)
    try:
        if dry_run:
            typer.echo(launcher(settings, Path.cwd()).show(job), nl=False)
            return
        sent.prepare()
        settings = pinned(settings)
        known = sent.of_job(job, launcher(settings, Path.cwd()).submit(job), settings, file)
    except StageError as error:
        _fail(error)
    typer.echo(known.job)
    try:
        sent.remember(known)
    except (OSError, StageError) as error:
        typer.echo(f"the job is sent, but not remembered here ({error}): give rondo logs its --cluster", err=True)
    if follow:
        _follow(known)


def jobs(as_json: JsonOption = False) -> None:
    """List the jobs that were sent from here, the newest first, and how they are now."""
    from pipelines.commands import sent

    known = list(reversed(sent.known()))
    found = _statuses(known)
    if as_json:
        rows = [
            {"job": each.job, "name": each.name, "state": status.state, "detail": status.detail, "spec": each.spec,
             "cluster": each.cluster, "kind": each.settings["kind"], "submitted": each.submitted}
            for each, status in zip(known, found, strict=True)
        ]  # fmt: skip
        typer.echo(json.dumps(rows, ensure_ascii=False))
        return
    if not known:
        typer.echo("no jobs were sent from here; send one with: rondo submit SPEC --cluster FILE")
    for each, status in zip(known, found, strict=True):
        detail = f"  ({status.detail})" if status.detail else ""
        typer.echo(f"{each.job:<48} {status.state:<8} {each.submitted[:16]}  {Path(each.cluster).name}{detail}")


def logs(job: JobArgument, cluster: OtherCluster = None, follow: FollowOption = False) -> None:
    """Show what a job has printed: the same lines as a run on this machine.

    Exit codes: 0 shown (with --follow: the job is done), 1 the cluster does not answer (the job failed or was stopped),
    2 there is no such job.
    """
    from stages.base import StageError

    known = _find(job, cluster)
    if follow:
        _follow(known)
        return
    try:
        text = known.launcher.logs(known.job)
    except StageError as error:
        _fail(error)
    typer.echo(text, nl=False)
    if not text:
        typer.echo("it has printed nothing yet", err=True)


def stop(job: JobArgument, cluster: OtherCluster = None) -> None:
    """End a job. What it has finished is kept; the same rondo submit continues there.

    Exit codes: 0 it has ended, 1 the cluster does not answer or the job goes on, 2 there is no such job.
    """
    from clusters.job import JobStatus
    from stages.base import StageError

    known = _find(job, cluster, whole=True)
    try:
        if (status := known.status()).ended and status.state != "gone":
            typer.echo(f"{known.job} had ended before: {status.state}")
            return
        if status.state == "gone":
            refuse(f"{known.job}: {status.detail}")
        known.launcher.stop(known.job)
        status = _ended(known)
    except StageError as error:
        _fail(error)
    if not status.ended:
        typer.echo(f"{known.job} was asked to end, and is still {status.state} after {_STOPPING:.0f} s", err=True)
        raise typer.Exit(1)
    if status.state == "gone":  # some clusters forget a job that was stopped
        status = JobStatus("stopped")
        known.end(status)
    typer.echo(f"{known.job}: {status.state}")


def _find(job: str, cluster: Path | None, whole: bool = False) -> Sent:
    from pipelines.commands import sent
    from pipelines.spec.problems import SpecError
    from stages.base import StageError

    try:
        return sent.find(job, cluster, whole)
    except SpecError as error:
        refuse_all(error)
    except StageError as error:
        refuse(str(error))


def _statuses(known: Sequence[Sent]) -> list[JobStatus]:
    """How each job is, as far as its cluster says in time. Clusters that do not answer keep nobody waiting."""
    from clusters.job import JobStatus
    from stages.base import StageError

    found = [JobStatus("unknown", f"no answer within {_ANSWER:.0f} s")] * len(known)
    left = queue.SimpleQueue[int]()

    def ask() -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                index = left.get_nowait()
                try:
                    found[index] = known[index].status()
                except StageError as error:
                    found[index] = JobStatus("unknown", str(error))

    for index in range(len(known)):
        left.put(index)
    threads = [threading.Thread(target=ask, daemon=True) for _ in range(min(16, len(known)))]
    for thread in threads:
        thread.start()
    until = time.monotonic() + _ANSWER
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return list(found)


def _ended(known: Sent) -> JobStatus:
    """The status of a job that is about to end, when it has, or after a while."""
    until = time.monotonic() + _STOPPING
    while not (status := known.status()).ended and time.monotonic() < until:
        time.sleep(_EVERY)
    return status


def _follow(known: Sent) -> None:
    """Print what a job prints until it ends, and exit with 1 if it does not end well. Ctrl-C leaves the job alone."""
    from pipelines.commands.follow import follow
    from stages.base import StageError

    try:
        status = follow(known.launcher, known.job, _EVERY, _PATIENCE)
    except KeyboardInterrupt:
        typer.echo(f"\nthe job goes on; follow it again with: rondo logs {known.job} --follow", err=True)
        raise typer.Exit(130) from None
    except StageError as error:
        _fail(error)
    detail = f": {status.detail}" if status.detail else ""
    typer.echo(f"job {known.job} {status.state}{detail}", err=True)
    if status.state != "done":
        raise typer.Exit(2 if status.state == "gone" else 1)


def _fail(error: Exception) -> NoReturn:
    from clusters.job import NoSuchJob

    typer.echo(str(error), err=True)
    raise typer.Exit(2 if isinstance(error, NoSuchJob) else 1) from None
