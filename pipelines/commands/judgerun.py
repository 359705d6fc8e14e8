"""``rondo judge-check``: how often a judge says what people have said of the same answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from clusters import local, running
from pipelines.commands import stepping
from pipelines.commands.judgetable import remarks, table
from pipelines.plan import given
from pipelines.plan.judging import judge_of
from pipelines.plan.steps import Step, walk
from pipelines.run import champions
from pipelines.run.runner import StepResult
from pipelines.run.store import ArtifactStore
from pipelines.spec import load
from pipelines.spec.judge import LoadedJudge, load_judge
from stages.base import Resources
from stages.catalog import LABELLED
from stages.io.filenames import RECORDS, VERDICT_RECORDS
from stages.io.tables import rows_of
from stages.judge.check import figures
from stages.judge.check.config import LabelledConfig
from stages.judge.check.labelled import LABELS
from stages.judge.judges.config import models_of, singles

_SPENT = ("input_tokens", "output_tokens", "cost", "seconds")


@dataclass(frozen=True)
class CheckPlan:
    """The steps that end in a judge's verdicts on pairs that people have judged."""

    labelled: Step
    judged: Step
    loaded: LoadedJudge
    serves: bool
    """Whether the judge runs models of its own."""
    notes: tuple[str, ...]

    @property
    def steps(self) -> list[Step]:
        return walk([self.judged])


def plan(
    judge: str, data: str, overrides: Sequence[str], reading: Sequence[str], config: LabelledConfig,
    store: ArtifactStore,
) -> CheckPlan:  # fmt: skip
    """The judge of a file, and the pairs of ``data``, read as the keys ``reading`` say.

    Raises:
        SpecError: the judge, or the data, is wrong.
    """
    loaded = load_judge(judge, overrides, partial(champions.source, store))
    source, notes = load.source(data, reading)
    records, _ = given.records([source], Path.cwd())
    pairs = {f"pairs.{number}": step for number, step in enumerate(records)}
    labelled = Step("check/pairs", LABELLED, config, pairs)
    judging = judge_of(loaded.judge, loaded.data.max_bad_share, loaded.resources.judge, loaded.folder, "judge")
    judged = judging.scored("check/judge", labelled)
    serves = any(models_of(each) for each in singles(loaded.judge).values())
    return CheckPlan(labelled, judged, loaded, serves, (*loaded.notes, *notes))


def make(planned: CheckPlan, store: ArtifactStore, as_json: bool, verbose: bool) -> int:
    """Ask the judge and show the figures. Ray is started only for a judge that has a model of its own, or workers.
    Returns the exit code."""

    def show(results: Sequence[StepResult], terminal: Console, say: stepping.Say) -> dict[str, Any]:
        report = _report(planned, {result.step.fingerprint: result for result in results})
        if not as_json:
            terminal.print(table(report))
            for line in remarks(report):
                say(line)
        return report

    ray = _Ray(planned)
    return stepping.make("judge-check", planned.steps, planned.notes, store, as_json, verbose, lambda _: ray, show)


class _Ray:
    """This machine's Ray, where the judge needs it."""

    def __init__(self, planned: CheckPlan) -> None:
        resources = planned.loaded.resources.judge
        self._needed = planned.serves or resources != Resources()
        self._resources = {"resources.judge": resources}
        self._open = False

    def open(self) -> None:
        if self._needed:
            self._open = True
            local.start(local.default())
            running.require(self._resources)

    def close(self) -> None:
        if self._open:
            local.stop()


def _report(planned: CheckPlan, results: Mapping[str, StepResult]) -> dict[str, Any]:
    labelled, judged = results[planned.labelled.fingerprint], results[planned.judged.fingerprint]
    compares = planned.loaded.judge.compares
    items = figures.joined(
        list(rows_of(labelled.artifact.tables(LABELS))),
        list(rows_of(labelled.artifact.tables(RECORDS))),
        list(rows_of(judged.artifact.tables(VERDICT_RECORDS))) if compares else [],
        [] if compares else list(rows_of(judged.artifact.tables(RECORDS))),
    )
    said = judged.summary
    return {
        "judge": planned.loaded.judge.use,
        **figures.figures(list(items)),
        "ensemble": {name: said[name] for name in ("agreement", "agreement_of_two") if name in said} or None,
        "reasons": said.get("quarantine_reasons", {}),
        "repeated": labelled.summary["repeated"],
        "left_out": labelled.summary["left_out"],
        "spent": {name: said[name] for name in _SPENT if name in said},
        "paid": said.get("paid"),
        "cached": judged.cached,
    }
