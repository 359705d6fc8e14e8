"""``rondo export``: a champion as a folder that any library loads, with a model card and its lineage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.common import DEFAULT_STORE, JsonOption, StoreOption, open_store, refuse


def export(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A pipeline, for its champion; NAME@3 for the third one it had.")
    ],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="A folder that is not there yet, or empty.")],
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Copy a champion's model out of the store, in Hugging Face format, with a model card and its lineage.

    The folder can be loaded by transformers and vLLM, and uploaded to the Hugging Face hub as it is.
    """
    from rich.console import Console

    from pipelines.run import export as exporting
    from pipelines.run.champions import named
    from stages.base import StageError
    from stages.io.filenames import ADAPTER

    opened = open_store(store)
    try:
        exporting.refuse_taken(to.expanduser())  # before the store is read through
        champions, entry = named(opened, name)
        policy = opened.manifest_at(entry.policy, entry.inputs)
        if policy is None:
            refuse(f"the policy of {champions.name}@{entry.number} was deleted from {opened.location}")
        about = exporting.document(opened, champions, entry, policy)
        files = exporting.write(opened, policy, about, to, Console(stderr=True))
    except (StageError, OSError) as error:
        refuse(str(error))
    folder = str(to.expanduser().resolve())
    load = f"AutoModelForCausalLM.from_pretrained({json.dumps(folder, ensure_ascii=False)})"
    if any(file.startswith(f"{ADAPTER}/") for file in files):
        load = f"PeftModel.from_pretrained({load}, {json.dumps(f'{folder}/{ADAPTER}', ensure_ascii=False)})"
    if as_json:
        champion = f"{champions.name}@{entry.number}"
        document = {"champion": champion, "policy": entry.policy, "folder": folder, "files": files, "load": load}
        typer.echo(json.dumps(document, ensure_ascii=False))
        return
    typer.echo(f"{champions.name}@{entry.number} is in {folder}, with its model card (README.md) and rondo.json")
    typer.echo(f"load it   {load}")
