"""``rondo champion``: which policy the next training starts from, which did before, and how to go back."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from pipelines.commands.common import DEFAULT_STORE, JsonOption, StoreOption, open_store, refuse

if TYPE_CHECKING:
    from pipelines.run.champions import Champion, Champions
    from pipelines.run.store import ArtifactStore

_ROLLBACK = "--rollback"


class RollbackCommand(TyperCommand):
    """``--rollback`` alone goes back by one; options of the library either always take a value or never."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        at = args.index(_ROLLBACK) if _ROLLBACK in args else None
        if at is not None and not "".join(args[at + 1 : at + 2]).lstrip("-").isdigit():
            args = [*args[: at + 1], "1", *args[at + 1 :]]
        return super().parse_args(ctx, args)


def champion(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A pipeline; without it all are listed.")] = None,
    rollback: Annotated[
        int | None,
        typer.Option(_ROLLBACK, metavar="[N]", min=1, help="Go back to the champion before this one, or N before."),
    ] = None,
    put: Annotated[
        str | None, typer.Option("--set", metavar="FINGERPRINT", help="Make this policy of the store the champion.")
    ] = None,
    reason: Annotated[str | None, typer.Option(help="Why it is changed by hand; kept in the history.")] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Show a pipeline's champion and those before it, or change it by hand: --rollback [N], --set FINGERPRINT.

    The champion is the policy that a schedule trains from and replaces by a better one. A spec starts from it with
    policy: {model: "champion://NAME"}.
    """
    from pipelines.run.champions import Champions
    from stages.base import StageError

    opened = open_store(store)
    if rollback is not None and put is not None:
        refuse("--rollback and --set are two champions; give one")
    change = _ROLLBACK if rollback is not None else "--set" if put is not None else None
    if name is None and change:
        refuse(f"{change}: of which pipeline? rondo champion NAME {change} ...")
    if change and not (reason or "").strip():
        refuse(f'{change} needs --reason "...": it is kept in the history, for whoever reads it later')
    try:
        if name is None:
            _list(opened, as_json)
            return
        champions = Champions(opened, name)
        if rollback is not None:
            champions.roll_back(rollback, str(reason))
        elif put is not None:
            champions.put(put, str(reason))
        champions.require()
    except StageError as error:
        refuse(str(error))
    _show(champions, as_json)


def _list(store: ArtifactStore, as_json: bool) -> None:
    from pipelines.run.champions import Champions, names

    found = {name: entry for name in names(store) if (entry := Champions(store, name).current) is not None}
    if as_json:
        typer.echo(json.dumps({name: asdict(entry) for name, entry in found.items()}, ensure_ascii=False))
        return
    if not found:
        typer.echo(f"no champions in {store.location}; a schedule makes them, or rondo champion NAME --set FINGERPRINT")
    for name, entry in found.items():
        typer.echo(f"{name:<24} {_line(entry)}")


def _show(champions: Champions, as_json: bool) -> None:
    if as_json:
        history = [asdict(entry) for entry in champions.history]
        document = {"name": champions.name, "champion": history[-1], "history": history}
        typer.echo(json.dumps(document, ensure_ascii=False))
        return
    for entry in reversed(champions.history):
        typer.echo(f"{'champion' if entry is champions.current else '':<9} {_line(entry)}")
        if (rate := entry.evidence.get("win_rate")) is not None:
            between = f"{rate['low']:.3f} to {rate['high']:.3f} on {rate['prompts']} prompts"
            typer.echo(f"{'':<14} win rate {rate['mean']:.3f} over the model it trained from, {between}")


def _line(entry: Champion) -> str:
    by = f" (run {entry.run})" if entry.run else ""
    restored = f" [restores {entry.restores}]" if entry.restores else ""
    return f"{entry.number:>3}  {entry.policy[:16]}  {entry.since}  {_printable(entry.reason)}{restored}{by}"


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)
