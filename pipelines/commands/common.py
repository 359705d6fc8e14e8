"""What the commands share: options, and how mistakes are shown."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from pipelines.plan.rounds import Plan
    from pipelines.run.store import ArtifactStore
    from pipelines.spec.load import Loaded
    from pipelines.spec.problems import SpecError

SpecArgument = Annotated[
    str, typer.Argument(metavar="SPEC", help="A YAML file, or the name of a bundled recipe such as quickstart.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a value of the spec, as in --set train.beta=0.2."),
]
StoreOption = Annotated[
    str,
    typer.Option(
        "--store", envvar="RONDO_STORE", metavar="DIR",
        help="Where results are kept: a folder, or a URI such as s3://bucket/prefix.",
    ),
]  # fmt: skip
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, for programs.")]
AddressOption = Annotated[
    str | None,
    typer.Option(
        envvar="RAY_ADDRESS", metavar="ADDRESS",
        help="Join the Ray cluster there: HOST:PORT of its head, or auto. Otherwise Ray is started on this machine.",
    ),
]  # fmt: skip
ClusterOption = Annotated[
    Path | None,
    typer.Option("--cluster", metavar="FILE", help="Settings of this machine's Ray: a file of kind local."),
]
WaitOption = Annotated[
    int,
    typer.Option(
        metavar="SECONDS",
        min=0,
        help="How long a stage waits for machines that the cluster adds on demand; 0: it has all it will have.",
    ),
]
DEFAULT_STORE = ".rondo"
VerboseOption = Annotated[bool, typer.Option("-v", "--verbose", help="Show what Ray and vLLM print.")]


def plan_of(
    spec: str,
    overrides: list[str] | None,
    address: str | None = None,
    cluster: Path | None = None,
    ask: bool = True,
    sweep: bool = False,
    store: ArtifactStore | None = None,
) -> tuple[Loaded, Plan]:
    """Load a spec (``loaded_of``) and plan it."""
    from pipelines.plan import rounds
    from pipelines.spec.problems import SpecError

    loaded = loaded_of(spec, overrides, address, cluster, ask, sweep, store)
    try:
        return loaded, rounds.plan(loaded.spec, loaded.path.parent)
    except SpecError as error:
        refuse_all(error)


def loaded_of(
    spec: str, overrides: list[str] | None, address: str | None, cluster: Path | None, ask: bool = True,
    sweep: bool = False, store: ArtifactStore | None = None, growing: bool = False,
) -> Loaded:  # fmt: skip
    """Load a spec, or say everything that is wrong with it and exit with 2. What it asks for has to be on this
    machine, unless it joins the cluster at ``address``, or is meant for that of a ``cluster`` file, which is asked what
    it has if it is running already (``ask``). The trials of a ``sweep`` have to have a place too. A champion is looked
    up in the ``store``; without one it stays open which one that is. The folders of a schedule may be ``growing`` from
    no files."""
    from clusters import local, running
    from pipelines.commands import submit
    from pipelines.run import champions
    from pipelines.spec import load
    from pipelines.spec.problems import Problem, SpecError
    from stages.base import StageError

    try:
        find = partial(champions.source, store) if store else None
        loaded = load.load(spec, overrides or (), find, growing)
        if address is not None:
            running.reach(address)
        if cluster is not None:
            submit.check_places(loaded, cluster, ask, sweep)
        found = [] if address or cluster else list(local.unplaceable(loaded.spec.places(sweep), local.default()))
        if found:
            raise SpecError([Problem(f"{loaded.path.name} {name}", text) for name, text in found])
        return loaded
    except SpecError as error:
        refuse_all(error)
    except StageError as error:
        refuse(str(error))


def looked_at(loaded: Loaded, show: int = 0) -> tuple[Loaded, tuple[str, ...]]:
    """The spec after a look at its first rows as the model will see them, and ``show`` of them for people; or say what
    is wrong with them and exit with 2."""
    from pipelines.spec.problems import SpecError

    try:
        return loaded.look(show)
    except SpecError as error:
        refuse_all(error)


def refuse_all(error: SpecError) -> NoReturn:
    from pipelines.spec.problems import printable

    count = len(error.problems)
    refuse(printable(f"{count} problem{'s' if count > 1 else ''} found, nothing was started:\n{error}"))


def open_store(location: str) -> ArtifactStore:
    from pipelines.run.store import ArtifactStore
    from stages.io.store import StoreError

    try:
        return ArtifactStore(location if "://" in location or not location else str(Path(location).absolute()))
    except StoreError as error:
        refuse(str(error))


class Refused(typer.Exit):
    """The spec or the usage is wrong; ``message`` was said."""

    def __init__(self, message: str) -> None:
        super().__init__(2)
        self.message = message


def refuse(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise Refused(message)
