"""The winner of a sweep as a command, and as a spec that runs as it is."""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipelines.run.execute import command, redacted
from pipelines.spec import load, yamlfile
from pipelines.spec.model_path import adapter_path, local_path
from pipelines.spec.models import CHAMPION, PipelineSpec

_PLAIN = re.compile(r"[A-Za-z][\w./:-]*")
_HEADER = "# Written by rondo sweep: the values that won. Changes here are lost when the sweep is run again."


def run_command(loaded: load.Loaded, number: int, point: Mapping[str, Any], store: str) -> str:
    """The command line that runs a spec with the values that won in a round."""
    changed = loaded.spec.iterate.train
    if number > 1 or any(first <= number for first in changed):  # values of rounds, which these are to come after
        found: dict[str, Any] = {"iterate.train": {**changed, number: {**changed.get(number, {}), **point}}}
    else:
        found = _overrides(loaded.spec, point)
    values = [f"{key}={_text(value)}" for key, value in found.items()]
    given = [text for text in loaded.overrides if not text.startswith(("sweep.", "sweep="))]
    overrides = [part for text in (*given, *values) for part in ("--set", text)]
    where = [] if store == str(Path.cwd() / ".rondo") else ["--store", store]
    return redacted(command("run", loaded.argument, *overrides, *where))


def _overrides(spec: PipelineSpec, point: Mapping[str, Any]) -> dict[str, Any]:
    """What to set; of a loss or divergence whose options are varied all of it, since a spec may give its name alone."""
    whole = {name.partition(".")[0] for name in point if name.startswith(("loss.", "divergence."))}
    changed = spec.train.changed(point)
    values: dict[str, Any] = {
        "loss": [loss.model_dump(mode="json", exclude_defaults=True) for loss in changed.loss],
        "divergence": changed.divergence.model_dump(mode="json", exclude_defaults=True),
    }
    found = {f"train.{name}": value for name, value in point.items() if name.partition(".")[0] not in whole}
    return found | {f"train.{name}": values[name] for name in sorted(whole)}


def _text(value: Any) -> str:
    """A value as ``--set`` reads it."""
    if isinstance(value, str) and _PLAIN.fullmatch(value) and yamlfile.scalar(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)


def resolved(spec: PipelineSpec, winners: Mapping[int, Mapping[str, Any]]) -> PipelineSpec:
    """The spec with the values that won, by the round in which they did; without its sweep."""
    iterate, train = spec.iterate, spec.train
    if tuple(winners) == (1,) and not iterate.train:
        train = train.changed(winners[1])
    else:
        changed = {number: {**iterate.train.get(number, {}), **winner} for number, winner in winners.items()}
        iterate = iterate.model_copy(update={"train": {**iterate.train, **changed}})
    return spec.model_copy(update={"train": train, "iterate": iterate, "sweep": None})


def text(spec: PipelineSpec, folder: Path, place: Path | None = None) -> str:
    """A spec as YAML, for a file in the folder ``place`` (None: anywhere); its paths are relative to ``folder``, from
    which it comes."""
    document = spec.model_dump(mode="json", exclude_defaults=True)
    if place is None or place.resolve() != folder:
        _relocate(document, spec, folder)
    return f"{_HEADER}\n{yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)}"


def write(spec: PipelineSpec, loaded: load.Loaded, file: Path | None) -> Path | None:
    """Write a spec to ``file``, or beside the one it comes from, or of a bundled recipe into the current folder.
    Returns the file, or None where no file was named and that folder cannot be written to, as in a job."""
    folder = loaded.path.parent
    if file is None:
        place = Path.cwd() if loaded.path in load.recipes().values() else folder
        if not os.access(place, os.W_OK):
            return None
        file = _free(place / f"{loaded.path.stem}-best.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")
    partial.write_text(text(spec, folder, file.parent), encoding="utf-8")
    partial.replace(file)
    return file


def _free(file: Path) -> Path:
    """The file, unless a person has written it: then another beside it."""
    if not file.exists() or file.read_text(encoding="utf-8", errors="replace").startswith(_HEADER):
        return file
    return _free(file.with_name(f"{file.stem}-sweep.yaml"))


def _relocate(document: dict[str, Any], spec: PipelineSpec, folder: Path) -> None:
    """Make what is relative to the old spec's folder absolute."""
    policy = document["policy"]
    elsewhere = spec.policy.model.startswith(("pkg://", CHAMPION))
    if not elsewhere and (model := local_path(spec.policy, folder)) is not None:
        policy["model"] = str(model)
    if spec.policy.adapter is not None:
        policy["adapter"] = str(adapter_path(spec.policy.adapter, folder))
    prompts = document.get("prompts", {})
    prompts.update({name: _absolute(place, folder) for name, place in prompts.items()})
    for source in document.get("preferences", ()):
        source["path"] = _absolute(source["path"], folder)


def _absolute(place: str, folder: Path) -> str:
    return place if "://" in place else os.path.normpath(folder / Path(place).expanduser())
