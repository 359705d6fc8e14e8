"""A cluster file becomes the settings of one kind of cluster."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from clusters.kinds import KINDS, Cluster
from pipelines.spec import yamlfile
from pipelines.spec.invalid import invalid
from pipelines.spec.problems import Fault, Problem, SpecError
from stages.hints import hint


def load(path: Path) -> Cluster:
    """Read and validate a cluster file.

    Raises:
        SpecError: with every problem found.
    """
    if not path.is_file():
        raise SpecError([Problem(str(path), "no such cluster file; docs/clusters.md says what is in one")])
    document = yamlfile.read(path)
    raw, faults = document.value, []
    kind = raw.get("kind")
    model = KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        found = f"unknown kind {kind!r}; {hint(str(kind), KINDS)}" if kind is not None else "required, but missing"
        faults.append(Fault(("kind",), f"{found} ({', '.join(KINDS)})" if kind is None else found))
    else:
        try:
            cluster = model.model_validate(raw)
        except ValidationError as error:
            faults += invalid(error, raw, model)
    if problems := [*document.problems, *(Problem(document.where(fault.path), fault.message) for fault in faults)]:
        raise SpecError(problems)
    return cluster
