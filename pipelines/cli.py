"""The ``rondo`` command."""

from __future__ import annotations

import json
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.commands import champion, connect, export, jobs, judgecheck, rewarding, schedule, sweeping
from pipelines.commands.common import (
    DEFAULT_STORE,
    AddressOption,
    ClusterOption,
    JsonOption,
    SetOption,
    SpecArgument,
    StoreOption,
    VerboseOption,
    WaitOption,
    looked_at,
    open_store,
    plan_of,
    refuse,
    refuse_all,
)
from pipelines.commands.ending import leave

if TYPE_CHECKING:
    from pipelines.run.store import ArtifactStore

app = typer.Typer(
    name="rondo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="""Preference optimization of language models as one pipeline on Ray.

    One YAML file (a spec) says what to train from what; rondo makes a plan of steps from it, runs those whose
    results are not there yet, and keeps every result in a store. Run the same command again at any time: it
    continues where the last one stopped.
    """,
    epilog="Start with: rondo run quickstart",
)


@app.command()
def check(
    spec: SpecArgument,
    overrides: SetOption = None,
    show: Annotated[
        int,
        typer.Option("--show", metavar="N", min=0, help="Print N rows of each source as the model will see them."),
    ] = 0,
    store: StoreOption = DEFAULT_STORE,
    address: AddressOption = None,
    cluster: Annotated[
        Path | None, typer.Option("--cluster", metavar="FILE", help="Compare resources with this cluster file.")
    ] = None,
) -> None:
    """Find every mistake in a spec and in the files it names. Starts nothing.

    The first rows of every file are written by the model's own chat template and tokenised: what it refuses, leaves out
    or makes equal is said here. With --address the cluster's nodes are asked too: whether they have Rondo and see the
    store, and whether all workers of the spec's resources have a place on them.
    """
    from pipelines.spec.problems import printable

    if cluster is not None and address == os.environ.get("RAY_ADDRESS"):
        address = None
    if address is not None and cluster is not None:
        refuse("--address and --cluster are two clusters; give one")
    loaded, plan = plan_of(spec, overrides, address, cluster, sweep=True, store=open_store(store))
    if address is not None:
        connect.ask(loaded, store, address)
    loaded, shown = looked_at(loaded, show)
    for text in shown:
        typer.echo(text)
    for note in loaded.notes:
        typer.echo(printable(f"note: {note}"))
    typer.echo(f"{loaded.path}: good; rounds: {len(plan.rounds)}, steps: {len(plan.steps)}")


@app.command()
def plan(
    spec: SpecArgument, overrides: SetOption = None, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False
) -> None:
    """Show each step with its fingerprint, whether its result is there, and if not, why it has to run.

    For the steps that train, score or answer it also says what memory a worker takes, as estimated, and what would not
    fit; tokens where they are known already.
    """
    from pipelines.commands import planning

    opened = open_store(store)
    loaded, planned = plan_of(spec, overrides, store=opened)
    planning.show(loaded.spec, planned, opened, as_json)


@app.command()
def run(
    spec: SpecArgument,
    overrides: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    address: AddressOption = None,
    cluster: ClusterOption = None,
    wait: WaitOption = 0,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Run a spec: skip what is committed, run the rest, and show how each round went.

    Exit codes: 0 done, 1 a stage failed, 2 the spec or the usage is wrong, 130 interrupted.
    """
    from pipelines.run.execute import execute
    from pipelines.run.runner import Committed

    ray = connect.ray_for(address, cluster)
    opened = open_store(store)
    loaded, planned = plan_of(spec, overrides, ray if isinstance(ray, str) else None, cluster, store=opened)
    if loaded.spec.sweep is not None:
        loaded = replace(loaded, notes=(*loaded.notes, sweeping.NOT_NOW))
    committed = Committed(opened)
    if any(step.stage.name in ("encode", "rollout") and committed(step) is None
           for step in planned.steps):  # fmt: skip
        loaded, _ = looked_at(loaded)
    document, code = execute(loaded, planned, opened, as_json, verbose, ray, wait)
    if as_json:
        typer.echo(json.dumps(document, ensure_ascii=False))
    raise typer.Exit(code)


app.command("train-reward")(rewarding.train_reward)
app.command()(sweeping.sweep)
app.command(cls=champion.RollbackCommand)(champion.champion)
app.command()(export.export)
app.command()(schedule.schedule)
app.command("judge-check")(judgecheck.judge_check)
app.command()(jobs.submit)
app.command()(jobs.jobs)
app.command()(jobs.logs)
app.command()(jobs.stop)


@app.command()
def data(
    what: Annotated[
        str,
        typer.Argument(metavar="SPEC|PATH", help="A spec, or files: a path, folder, glob, or s3://, gs://, hf://."),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override a value of the spec; for files, of their entry, as in --set fields.prompt=question.",
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Put the HTML report here.")] = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Report on preference data: counts, duplicates, contradictions, length bias, languages, contamination, labels.

    Trains nothing and starts no cluster. What it reads is kept in the store and not read again by rondo run.
    """
    from pipelines.commands import datareport
    from pipelines.spec.problems import SpecError

    try:
        opened = open_store(store)
        planned = datareport.plan(what, overrides or (), opened)
    except SpecError as error:
        refuse_all(error)
    raise typer.Exit(datareport.make(planned, opened, html, as_json, verbose))


@app.command()
def runs(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """List the runs of a store, the newest first."""
    opened = open_store(store)
    records = [_record(opened, name) for name in reversed(opened.runs())]
    if as_json:
        typer.echo(json.dumps(records, ensure_ascii=False))
        return
    if not records:
        typer.echo(f"no runs in {store}; start one with: rondo run quickstart")
    for record in records:
        fresh = sum(not step["cached"] for step in record["steps"])
        typer.echo(f"{record['run']:<48} {record['status']:<12} {record['seconds']:>8.1f} s  {fresh} steps run")


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A run's name, or enough of it to be the only one.")],
    samples: Annotated[
        int, typer.Option(metavar="N", min=0, help="Answers to N held-out prompts side by side, the worst first.")
    ] = 0,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Show one run: its steps, its rounds and where its policy is."""
    from rich.console import Console

    from pipelines.commands.samples import lines
    from pipelines.run import summary

    opened = open_store(store)
    names = opened.runs()
    matches = [run for run in names if run == name] or [run for run in names if name in run]
    if len(matches) != 1:
        found = f"{len(matches)} runs match: {', '.join(matches)}" if matches else f"no such run in {store}"
        refuse(f"{name}: {found}; rondo runs lists them")
    record = _record(opened, matches[0])
    if as_json:
        typer.echo(json.dumps(record, ensure_ascii=False))
        return
    if samples:
        typer.echo("\n".join(lines(opened, record, samples)).lstrip("\n"))
        return
    typer.echo(f"{record['run']}  {record['status']}  {record['seconds']:.1f} s  {record['spec']}")
    for override in record.get("overrides", ()):
        typer.echo(f"  --set {override}")
    for step in record["steps"]:
        state = "committed before" if step["cached"] else f"{step['seconds']:.1f} s"
        typer.echo(f"  {step['key']:<26} {step['fingerprint'][:12]}  {state}")
    console = Console(width=None if sys.stdout.isatty() else 110)
    if record["rounds"]:
        for table in summary.tables(record["rounds"]):
            console.print(table)
    for key in ("error", "policy", "log"):
        if record.get(key):
            typer.echo(f"{key:<9} {record[key]}")


def _record(store: ArtifactStore, name: str) -> dict[str, Any]:
    """A run's record; one that says running but whose process is gone was killed."""
    from stages.io.store import StoreError

    record = {"run": name, "status": "unknown", "spec": "", "steps": [], "rounds": [], "seconds": 0.0}
    try:
        record |= store.read_run(name) or {}
    except StoreError:
        record["status"] = "damaged"
    if record["status"] == "running" and record.get("host") == socket.gethostname():
        with store.lock(f"run-{name}", timeout=0) as free:
            if free:
                record["status"] = "killed"
    return record


def main() -> None:
    """Entry point of the console command."""
    from stages.io.store import StoreError

    try:
        app()
    except (StoreError, OSError) as error:
        print(error, file=sys.stderr)
        leave(2)
    except KeyboardInterrupt:
        leave(130)
    except SystemExit as ended:  # every command ends with one
        if ended.code is not None and not isinstance(ended.code, int):
            print(ended.code, file=sys.stderr)
        leave(ended.code if isinstance(ended.code, int) else int(ended.code is not None))
    except BaseException:
        sys.excepthook(*sys.exc_info())
        leave(1)
