"""``rondo sweep``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from pipelines.spec.load import Loaded

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
    from pipelines.sweep.execute import execute
    from pipelines.sweep.one import Options
    from stages.base import StageError

    ray = connect.ray_for(address, cluster)
    opened = open_store(store)
    loaded, _ = plan_of(spec, overrides, ray if isinstance(ray, str) else None, cluster, sweep=True, store=opened)
    if loaded.spec.sweep is None:
        refuse(f"{loaded.path}: has no sweep section; for example sweep: {{space: {{beta: [0.05, 0.1, 0.3]}}}}")
    if out is not None:
        _check_out(out, loaded)
    loaded, _ = looked_at(loaded)
    try:
        document, code = execute(loaded, opened, Options(as_json, verbose, ray, wait, out))
    except StageError as error:
        refuse(str(error))
    if as_json:
        typer.echo(json.dumps(document, ensure_ascii=False))
    raise typer.Exit(code)


def _check_out(out: Path, loaded: Loaded) -> None:
    """See that the spec with the winner's values can be written to ``out``, and runs from there; else exit with 2."""
    from pipelines import plugins

    if loaded.spec.sweep is None or loaded.spec.sweep.promote is None:
        refuse("--out needs sweep.promote: best; the winner's command is printed without it")
    if out.is_dir() or out.resolve() == loaded.path:
        refuse(f"--out {out}: is {'a folder' if out.is_dir() else 'the spec itself'}; name a file of its own")
    named = plugins.travelling(plugins.module_names(loaded.spec.model_dump()), [loaded.path.parent])
    if named and out.parent.resolve() != loaded.path.parent:
        refuse(f"--out {out}: the spec names {named[0].name}, which stands beside it; put the file into that folder")
