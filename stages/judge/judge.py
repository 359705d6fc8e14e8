"""A judge scores the rollouts, whole prompts at a time."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

import pyarrow as pa

from stages.base import StageError, Summary
from stages.core.errors import RowError
from stages.core.records import JUDGEMENTS, Judgement, Rollout, messages_of
from stages.io.artifact import Artifact, Table
from stages.io.context import StageContext
from stages.io.filenames import RECORDS
from stages.io.output import PartWriter
from stages.io.parts import run_parts
from stages.io.quarantine import Quarantine
from stages.io.tables import read_table
from stages.judge import builtin
from stages.judge.config import JudgeStageConfig

_PROMPTS = 16
"""Prompts that a judge is given at a time."""


def run(config: JudgeStageConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Judge every rollout; a part has the ``records.arrow`` of a part of the rollouts, in their order. What the judge
    has no score for goes to quarantine.

    Raises:
        StageError: the judge left a rollout out, judged one twice, or had no score for too many.
    """
    tables = inputs["rollouts"].tables(RECORDS)
    tasks = [{"part": table.part.name, "rows": table.rows, "table": number} for number, table in enumerate(tables)]
    counts = run_parts(
        tasks, "stages.judge.judge:Judging", context, "answers", config=config, rollouts=inputs["rollouts"]
    )
    judged, refused, every = counts["rows"], counts["quarantined"], sum(table.rows for table in tables)
    if not judged or refused > config.max_bad_share * every:
        raise StageError(
            f"the judge has no score for {refused} of {every} answers, more than max_bad_share "
            f"{config.max_bad_share:g} allows: {counts['quarantine_reasons']}. Mend the judge, or raise "
            "data.max_bad_share"
        )
    quarantine = {name: counts[name] for name in ("quarantined", "quarantine_reasons")}
    return {"judgements": judged, "mean_score": counts["score"] / judged, **quarantine}


class Judging:
    """Holds the judge; makes judgements of parts of the rollouts."""

    def __init__(self, config: JudgeStageConfig, rollouts: Artifact) -> None:
        self._judge = builtin.make(config.judge)
        self._tables = rollouts.tables(RECORDS)

    def __call__(self, task: Mapping[str, Any], part: PartWriter) -> None:
        rollouts = read_rollouts(self._tables[task["table"]])
        prompts = [list(group) for _, group in groupby(rollouts, lambda rollout: rollout.prompt_id)]
        judged: list[Judgement] = []
        quarantine = part.quarantine
        for start in range(0, len(prompts), _PROMPTS):
            some = [rollout for prompt in prompts[start : start + _PROMPTS] for rollout in prompt]
            for rollout, judgement in zip(some, in_order(some, self._judge(some)), strict=True):
                if scored(judgement):
                    judged.append(judgement)
                else:
                    quarantine.add(_refused(rollout, judgement))
        rows = [asdict(judgement) for judgement in judged]
        part.table(RECORDS, [pa.Table.from_pylist(rows, schema=JUDGEMENTS)], JUDGEMENTS)
        part.counts["score"] = float(sum(judgement.score for judgement in judged))


def read_rollouts(table: Table) -> list[Rollout]:
    """Rollouts without their token ids, which nobody who judges asks for: they take far more memory than the texts."""
    names = [name for name in Rollout.__dataclass_fields__ if name not in ("prompt_ids", "ids")]
    rows = read_table(table.path).select(names).to_pylist()
    return [Rollout(**{**row, "messages": messages_of(row["messages"])}) for row in rows]


def in_order(rollouts: Sequence[Rollout], judgements: Sequence[Judgement]) -> list[Judgement]:
    """The judgements in the rollouts' order."""
    by_key = {(j.prompt_id, j.sample): j for j in judgements}
    wanted = [(r.prompt_id, r.sample) for r in rollouts]
    if len(judgements) != len(wanted) or set(by_key) != set(wanted):
        raise StageError(f"the judge gave {len(judgements)} judgements for {len(wanted)} rollouts; it owes one each")
    return [by_key[key] for key in wanted]


def scored(judgement: Judgement) -> bool:
    """Whether a judgement has a finite score."""
    return isinstance(judgement.score, numbers.Real) and math.isfinite(judgement.score)


def _refused(rollout: Rollout, judgement: Judgement) -> dict[str, str]:
    reason = f"the judge's score is {judgement.score!r:.40}, not a finite number"
    error = RowError("score", f"{reason}: {judgement.reason}" if judgement.reason else reason)
    return Quarantine.row(f"prompt {rollout.prompt_id} sample {rollout.sample}", error, rollout.text)
