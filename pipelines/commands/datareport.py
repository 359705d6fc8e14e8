"""``rondo data``: what preference data is like, before anything is trained on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from pipelines.commands import stepping
from pipelines.plan import given
from pipelines.plan.base_model import base_step
from pipelines.plan.steps import Step, walk
from pipelines.run import champions
from pipelines.run.runner import StepResult
from pipelines.run.store import ArtifactStore
from pipelines.spec import load
from pipelines.spec.models import SourceSpec
from pipelines.spec.problems import Problem, SpecError
from stages.catalog import QUALITY
from stages.data.config import FilterConfig, QualityConfig
from stages.data.quality.report import text
from stages.io.filenames import REPORT_HTML, REPORT_JSON


@dataclass(frozen=True)
class DataPlan:
    """The steps that end in a quality report, and what is worth saying before."""

    report: Step
    notes: tuple[str, ...]

    @property
    def steps(self) -> list[Step]:
        return walk([self.report])


def plan(argument: str, overrides: Sequence[str], store: ArtifactStore) -> DataPlan:
    """The report of a spec's preferences, or of the files that ``argument`` names. A champion is one of the store.

    Raises:
        SpecError: the spec, or the source, is wrong.
    """
    if argument in load.recipes() or Path(argument).suffix in (".yaml", ".yml"):
        return _of_spec(load.load(argument, overrides, partial(champions.source, store)))
    source, notes = load.source(argument, overrides)
    return DataPlan(_report([source], Path.cwd(), {}, FilterConfig()), notes)


def _of_spec(loaded: load.Loaded) -> DataPlan:
    spec, folder = loaded.spec, loaded.path.parent
    if not spec.preferences:
        message = "no preferences to look at; the pairs of this spec are made while it runs"
        raise SpecError([Problem(loaded.path.name, message)])
    others: dict[str, Step] = {"policy": base_step(spec.policy, folder)}
    if spec.prompts.heldout:
        others["heldout"] = given.prompts("heldout", spec.prompts.heldout, folder)
    return DataPlan(_report(spec.preferences, folder, others, spec.data.filters), loaded.notes)


def _report(sources: Sequence[SourceSpec], folder: Path, others: Mapping[str, Step], filters: FilterConfig) -> Step:
    made, source_of = given.records(sources, folder)
    tasks = tuple(sources[number].task for number in source_of)
    config = QualityConfig(tasks=tasks if any(tasks) else (), similarity=filters.similarity, ngram=filters.ngram)
    pairs = {f"pairs.{index}": step for index, step in enumerate(made)}
    return Step("data/report", QUALITY, config, {**pairs, **others})


def make(planned: DataPlan, store: ArtifactStore, html: Path | None, as_json: bool, verbose: bool) -> int:
    """Make the report and show it; ``html`` is where to put a copy of the page. Returns the exit code."""

    def show(results: Sequence[StepResult], _: Console, say: stepping.Say) -> dict[str, Any]:
        artifact = results[-1].artifact
        page = artifact.path(REPORT_HTML)
        if html is not None:
            html.parent.mkdir(parents=True, exist_ok=True)
            page = Path(shutil.copyfile(page, html))
        report: dict[str, Any] = json.loads(artifact.path(REPORT_JSON).read_text(encoding="utf-8"))
        if not as_json:
            say(text(report, page))
        return report

    without = stepping.NoRay()
    return stepping.make("data", planned.steps, planned.notes, store, as_json, verbose, lambda _: without, show)
