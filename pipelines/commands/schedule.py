"""``rondo schedule``: train again whenever it is due, from the champion, on what is new."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipelines.commands import connect
from pipelines.commands.common import (
    DEFAULT_STORE,
    AddressOption,
    JsonOption,
    Refused,
    SetOption,
    SpecArgument,
    StoreOption,
    VerboseOption,
    WaitOption,
    loaded_of,
    open_store,
    refuse,
    refuse_all,
)

if TYPE_CHECKING:
    from clusters.job import JobSpec
    from clusters.kinds import Cluster
    from clusters.kuberay import KubeRayCluster
    from pipelines.run.store import ArtifactStore
    from pipelines.schedule.service import Patience
    from pipelines.schedule.times import Times
    from pipelines.spec.load import Loaded

_LEAST_LEASE = 3
_DAY = 86_400
_AHEAD = timedelta(minutes=1)
"""By which the clock that sent a tick may be ahead."""


def schedule(
    spec: SpecArgument,
    cron: Annotated[
        str | None,
        typer.Option(metavar="LINE", help='When, as in "0 2 * * *": minute, hour, day, month, weekday. '
                     "A sixth field in front is the second."),
    ] = None,
    timezone: Annotated[str, typer.Option(metavar="ZONE", help="Of the cron line, such as Asia/Jakarta.")] = "UTC",
    once: Annotated[bool, typer.Option("--once", help="One tick now, without a service.")] = False,
    due: Annotated[
        str | None, typer.Option(metavar="TIME", help="When the one tick was due; it is not done twice.")
    ] = None,
    status: Annotated[
        bool, typer.Option("--status", help="Show the last ticks, the next, the lease and the champion.")
    ] = False,
    cluster: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Send each tick to this cluster. For Kubernetes print a manifest instead."),
    ] = None,
    manifest: Annotated[
        Literal["raycronjob", "cronjob"],
        typer.Option(help="For Kubernetes: of KubeRay itself, or a CronJob for operators without RayCronJob."),
    ] = "raycronjob",
    overrides: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    address: AddressOption = None,
    wait: WaitOption = 0,
    lease: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=_LEAST_LEASE, max=_DAY, help="Silence after which a host has lost its tick."
        ),
    ] = 60,
    retry_after: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="After a failure; twice as long after each further one.")
    ] = 300,
    max_failures: Annotated[
        int, typer.Option(metavar="N", min=1, help="Stop with exit code 1 after so many failures in a row.")
    ] = 5,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:  # fmt: skip
    """Train again on a schedule: from the champion, on the files that are new; a better policy is the new champion.

    Runs in the foreground until it is told to stop (Ctrl-C, SIGTERM). Any number of these services, and of --once, may
    share a store: one tick of a pipeline runs at a time, and one that was cut off is gone on with. The spec needs
    evaluate.promote_if: what the gate does not let through is kept, and the champion stays.

    RONDO_WEBHOOK in the environment is an address that is told of ticks that fail.

    Exit codes: 0 stopped, or the one tick is done; 1 too many ticks failed, or the one tick did; 2 the spec or the
    usage is wrong; 130 interrupted.
    """
    from stages.base import StageError

    try:
        if sum([cron is not None, once, status]) != 1:
            refuse('give one of --cron "0 2 * * *" (a service), --once (one tick now) and --status')
        if due is not None and not once:
            refuse("--due is for --once")
        if status:
            _status(spec, overrides, store, as_json)
        elif once:
            _once(spec, overrides, store, address, cluster, wait, lease, due, as_json, verbose)
        else:
            from pipelines.schedule.service import Patience
            from pipelines.schedule.times import Times

            times = Times.parse(str(cron), timezone)
            patience = Patience(retry_after, max_failures, lease)
            _serve(spec, overrides, store, address, cluster, wait, times, patience, manifest)
    except StageError as error:
        refuse(str(error))


def _checked(
    spec: str, overrides: list[str] | None, address: str | None, cluster: Path | None, store: ArtifactStore | None
) -> Loaded:
    """The spec, or every mistake in it and exit with 2: also what only a schedule needs."""
    from pipelines.spec.problems import Problem, SpecError

    loaded = loaded_of(spec, overrides, address, cluster, store=store, growing=True)
    if loaded.spec.evaluate.promote_if is None:
        text = (
            "a schedule makes only what a gate lets through the champion: give prompts.heldout, and for example "
            "evaluate: {promote_if: {win_rate: 0.55}}"
        )
        refuse_all(SpecError([Problem(loaded.where(("evaluate", "promote_if")), text)]))
    return loaded


def _once(
    spec: str, overrides: list[str] | None, store: str, address: str | None, cluster: Path | None, wait: int,
    lease: float, due: str | None, as_json: bool, verbose: bool,
) -> None:  # fmt: skip
    from pipelines.run.execute import redacted
    from pipelines.schedule import webhook
    from pipelines.schedule.ledger import Ledger, now
    from pipelines.schedule.service import failure
    from pipelines.schedule.tick import Options, tick
    from pipelines.spec.problems import SpecError
    from stages.base import StageError

    url, moment = webhook.take(), _moment(due) if due else None

    def tell(name: str, reason: str, about: dict[str, Any], failures: int) -> None:
        event = failure(name, moment or now(), redacted(reason), about, failures)
        if url is not None and (why := webhook.call(url, event)) is not None:
            typer.echo(f"the webhook could not be called: {why}", err=True)

    try:
        ray, opened = connect.ray_for(address, cluster), open_store(store)
        loaded = _checked(spec, overrides, ray if isinstance(ray, str) else None, cluster, opened)
        say = partial(typer.echo, err=as_json)
        try:
            document, code = tick(loaded, opened, moment, Options(as_json, verbose, ray, wait, lease), say)
        except SpecError as error:
            refuse_all(error)
    except (Refused, StageError) as error:
        tell(spec, error.message if isinstance(error, Refused) else str(error), {}, 1)
        raise
    if code == 1:
        about = {key: document[key] for key in ("tick", "run", "log")}
        tell(loaded.spec.name, document["reason"], about, Ledger(opened, loaded.spec.name).failures)
    if as_json:
        typer.echo(json.dumps(document, ensure_ascii=False))
    raise typer.Exit(code)


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        refuse(f"--due {text}: not a time such as 2026-01-31T02:00:00+00:00")
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if moment > datetime.now(UTC) + _AHEAD:
        refuse(f"--due {text}: is yet to come; leave --due out for a tick now")
    return moment


def _serve(
    spec: str, overrides: list[str] | None, store: str, address: str | None, cluster: Path | None, wait: int,
    times: Times, patience: Patience, manifest: str,
) -> None:  # fmt: skip
    from clusters.kinds import launcher, pinned
    from clusters.kuberay import KubeRayCluster
    from clusters.local import LocalCluster, default
    from pipelines.commands import submit
    from pipelines.schedule import status, webhook
    from pipelines.schedule.service import Service
    from pipelines.spec import clusterfile
    from pipelines.spec.problems import SpecError

    try:
        settings: Cluster = clusterfile.load(cluster) if cluster else default()
    except SpecError as error:
        refuse_all(error)
    away = not isinstance(settings, LocalCluster)
    store = _store_of(settings, cluster, store)
    if away and address and address != os.environ.get("RAY_ADDRESS"):
        refuse("--address and --cluster are two clusters; give one")
    if isinstance(settings, KubeRayCluster):
        loaded = _checked(spec, overrides, None, cluster, None)
        assert cluster is not None
        _print_manifest(loaded, overrides or [], settings, cluster, times, patience.lease, manifest)
        return
    opened: ArtifactStore = open_store(store)
    loaded = _checked(spec, overrides, None if away else address, cluster, opened)
    try:
        if submit.takes_along(settings):
            submit.check_travels(loaded)
    except SpecError as error:
        refuse_all(error)
    own = ["--once", "--lease", f"{patience.lease:g}"]
    if not settings.store:
        own += ["--store", opened.location]
    if not away:
        own += [part for flag, value in (("--address", address), ("--wait", wait)) if value
                for part in (flag, str(value))]  # fmt: skip
    file = cluster.absolute() if cluster else None

    def job(due: datetime) -> JobSpec:
        return submit.job(loaded, overrides or (), settings, file, "schedule", (*own, "--due", due.isoformat()))

    status.write(opened, loaded.spec.name, times)
    service = Service(
        loaded.spec.name, times, opened, launcher(pinned(settings), Path.cwd()), job, _logged, patience,
        webhook.take(), poll=10.0 if away else 1.0,
    )  # fmt: skip
    raise typer.Exit(service.run())


def _store_of(settings: Cluster, cluster: Path | None, store: str) -> str:
    """Where the ticks on a cluster keep their results, and the service has to look."""
    if not settings.store:
        return store
    if store not in (DEFAULT_STORE, settings.store):
        refuse(f"--store {store}: the ticks of {cluster} keep theirs in {settings.store}, where this looks too")
    return settings.store


def _logged(text: str) -> None:
    typer.echo(f"{datetime.now().astimezone().isoformat(timespec='seconds')}  {text}")


def _status(spec: str, overrides: list[str] | None, store: str, as_json: bool) -> None:
    from pipelines.schedule.status import lines, status
    from pipelines.spec.problems import printable

    opened = open_store(store)
    loaded = loaded_of(spec, overrides, None, None, store=opened, growing=True)
    found = status(opened, loaded.spec.name)
    typer.echo(json.dumps(found, ensure_ascii=False) if as_json else printable("\n".join(lines(found))))


def _print_manifest(
    loaded: Loaded, overrides: list[str], cluster: KubeRayCluster, file: Path, times: Times, lease: float, form: str
) -> None:
    """A manifest for kubectl, with which Kubernetes keeps the schedule."""
    from clusters import kubectl, raycron
    from pipelines.commands import submit
    from pipelines.spec.problems import SpecError

    if refused := _not_on_kubernetes(times):
        refuse(f"--cron {times.cron!r}: {refused}")
    try:
        if submit.takes_along(cluster):
            submit.check_travels(loaded)
    except SpecError as error:
        refuse_all(error)
    job = submit.job(loaded, overrides, cluster, file, "schedule", ("--once", "--lease", f"{lease:g}"))
    make = raycron.ray_cron_job if form == "raycronjob" else raycron.cron_job
    typer.echo(kubectl.readable(make(cluster, job, kubectl.taken(cluster, job), times.cron, times.timezone)), nl=False)


def _not_on_kubernetes(times: Times) -> str | None:
    """What of a cron line Kubernetes reads otherwise, or not at all."""
    if times.seconds:
        return "Kubernetes takes five fields; ticks of seconds need the service"
    *_, days, _, weekdays = times.cron.upper().split()
    if "7" in weekdays.replace("-", ",").split(","):
        return "for Kubernetes Sunday is 0, not 7"
    if "L" in days or "#" in weekdays or weekdays.endswith("L"):
        return "Kubernetes knows neither L nor #: name days, or use the service"
    return None
