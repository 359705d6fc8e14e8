"""Artifacts for tests of single stages: made as a run makes them, in a store below a folder."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.base import Config, Resources, Stage
from stages.io.artifact import Artifact, Part, Table, UserFile
from stages.io.context import StageContext
from stages.io.output import Output
from stages.io.store import Store
from stages.io.tables import read_table


def output(folder: Path, name: str) -> Output:
    return Output(Store.at(str(folder)), name, "inputs")


def made(out: Output, summary: Mapping[str, Any] | None = None) -> Artifact:
    """What was written into an output, as the artifact that it becomes."""
    return Artifact(out.store, out.fingerprint, "attempt", tuple(out.parts), summary or {})


def of_folder(folder: Path, fingerprint: str = "", summary: Mapping[str, Any] | None = None, **counts: Any) -> Artifact:
    """A folder's files as an artifact of one part."""
    files = {file.relative_to(folder).as_posix(): file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    part = Part("00000", folder.name, files, counts)
    return Artifact(Store.at(str(folder.parent)), fingerprint or folder.name, "attempt", (part,), summary or {})


def of_rows(
    folder: Path, name: str, file: str, parts: Sequence[Sequence[Mapping[str, Any]]], schema: pa.Schema,
    summary: Mapping[str, Any] | None = None,
) -> Artifact:  # fmt: skip
    """Rows as an artifact with so many parts."""
    out = output(folder, name)
    for number, rows in enumerate(parts):
        with out.part(f"{number:05d}") as part:
            part.table(file, [pa.Table.from_pylist(list(rows), schema=schema)], schema)
    return made(out, summary)


def rows(artifact: Artifact, file: str) -> list[dict[str, Any]]:
    """All rows of an artifact's tables."""
    return [row for table in artifact.tables(file) for row in read_table(table.path).to_pylist()]


def table(path: Path) -> Table:
    """An Arrow file on its own."""
    part = Part("00000", path.parent.name, {path.name: path.stat().st_size}, {"rows": read_table(path).num_rows})
    return Table(Store.at(str(path.parent.parent)), part, path.name)


def run(
    stage: Stage[Any], folder: Path, config: Config, inputs: Mapping[str, Artifact | UserFile | Path],
    resources: Resources | None = None, name: str = "",
) -> Artifact:  # fmt: skip
    """Run one stage, without a runner, and return what it made; folders are given as artifacts."""
    out = output(folder, name or stage.name)
    context = StageContext(out, resources or Resources(), lambda done, total, note: None)
    module, _, function = stage.run.partition(":")
    given = {key: of_folder(value) if isinstance(value, Path) else value for key, value in inputs.items()}
    summary = getattr(importlib.import_module(module), function)(config, given, context)
    return made(out, summary)
