"""``rondo sweep``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands import connect
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
)

NOT_NOW = "this trains with the values under train; rondo sweep varies them"
"""A run of a spec with a sweep."""


def sweep(
    spec: SpecArgument,
    overrides: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    address: AddressOption = None,
    cluster: ClusterOption = None,
    wait: WaitOption = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write the spec with the winner's values here (promote: best)."),
    ] = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Try many values of the training's settings (the spec's sweep section), and find the best.

    Trials share all work that they have in common. Those that ended are not run again: the same command goes on with
    a sweep that was stopped, and with more trials than before it adds to them.

    Exit codes: 0 done, 1 something failed or no trial came to its end, 2 the spec or the usage is wrong, 130
    interrupted.
    """
    from pipelines.sweep.sweep import Options
    from pipelines.sweep.sweep import sweep as run_sweep
    from stages.base import StageError

    ray = connect.ray_for(address, cluster)
    loaded, _ = plan_of(spec, overrides, ray if isinstance(ray, str) else None, cluster, sweep=True)
    if loaded.spec.sweep is None:
        refuse(f"{loaded.path}: has no sweep section; for example sweep: {{space: {{beta: [0.05, 0.1, 0.3]}}}}")
    opened = open_store(store)
    loaded, _ = looked_at(loaded)
    try:
        document, code = run_sweep(loaded, opened, Options(as_json, verbose, ray, wait, out))
    except StageError as error:
        refuse(str(error))
    if as_json:
        typer.echo(json.dumps(document, ensure_ascii=False))
    raise typer.Exit(code)
