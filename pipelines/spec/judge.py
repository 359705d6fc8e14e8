"""A judge without the rest of a spec: that of a whole spec, or of a file that holds nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.spec import load, yamlfile
from pipelines.spec.checks import preflight
from pipelines.spec.load import Champion
from pipelines.spec.models import DataSpec, ResourcesSpec
from pipelines.spec.problems import Problem, SpecError
from stages.judge.judges.config import JudgeConfig

SECTIONS = ("judge", "resources", "data")
"""What matters to a judge: what it is, where it runs, and how much it may leave out (``data.max_bad_share``)."""


@dataclass(frozen=True)
class LoadedJudge:
    judge: JudgeConfig
    resources: ResourcesSpec
    data: DataSpec
    folder: Path
    """What its paths are relative to."""
    notes: tuple[str, ...]


def load_judge(name: str, overrides: Sequence[str] = (), champion: Champion | None = None) -> LoadedJudge:
    """Read, override and check the judge of a file, or of a bundled recipe; other sections are not looked at.

    Raises:
        SpecError: with every problem found.
    """
    path = load.find(name)
    document = yamlfile.read(path)
    raw = {key: value for key, value in document.value.items() if key in SECTIONS}
    problems = list(document.problems)
    for text in overrides:
        if text.partition("=")[0].partition(".")[0] in SECTIONS:
            problems += load.override(raw, text)
        else:
            problems.append(Problem(f"--set {text}", f"expected a key in {', '.join(SECTIONS)}, as in judge.mode=..."))
    preflight.importable_from(path.parent)
    values, invalid = load.validate(raw, path.parent)
    values = {key: value for key, value in values.items() if key in SECTIONS}
    if champion is not None:
        load.look_up(values, invalid, champion)
    if raw.get("judge") is None:
        problems.append(Problem(f"{path.name} judge", "required, but missing; for example judge: {use: sentiment}"))
    elif getattr(values.get("judge"), "model", None) == "reward":
        message = "is trained with rondo train-reward; name the folder that it prints"
        problems.append(Problem(document.where(("judge", "model")), message))
        raise SpecError(problems)
    checked = preflight.check({**values, "reward": None}, path.parent)  # nothing is trained here that could judge
    where = load.placing(document, overrides)
    faults = [fault for fault in (*invalid, *checked.faults) if fault.path[0] in raw]
    problems += [Problem(where(fault.path), fault.message) for fault in faults]
    if problems:
        raise SpecError(problems)
    return LoadedJudge(values["judge"], values["resources"], values["data"], path.parent, tuple(checked.notes))
