"""A judge scores the rollouts, whole prompts at a time."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from stages.base import Artifact, StageContext, StageError, Summary
from stages.core.errors import RowError
from stages.core.records import JUDGEMENTS, Judgement, Rollout, messages_of
from stages.io.filenames import RECORDS
from stages.io.quarantine import Quarantine
from stages.io.tables import read_table, write_rows
from stages.judge import builtin
from stages.judge.config import JudgeStageConfig

_PROMPTS = 16


def read_rollouts(folder: Path) -> list[Rollout]:
    """Rollouts without their token ids, which nobody who judges asks for: they take far more memory than the texts."""
    names = [name for name in Rollout.__dataclass_fields__ if name not in ("prompt_ids", "ids")]
    rows = read_table(folder / RECORDS).select(names).to_pylist()
    return [Rollout(**{**row, "messages": messages_of(row["messages"])}) for row in rows]


def run(config: JudgeStageConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Judge every rollout; ``records.arrow`` keeps their order. What the judge has no score for goes to quarantine.

    Raises:
        StageError: the judge left a rollout out, judged one twice, or had no score for too many.
    """
    judge = builtin.make(config.judge)
    prompts = [list(group) for _, group in groupby(read_rollouts(inputs["rollouts"].path), lambda r: r.prompt_id)]
    judged: list[Judgement] = []
    with Quarantine(context.output) as quarantine:
        for start in range(0, len(prompts), _PROMPTS):
            rollouts = [rollout for prompt in prompts[start : start + _PROMPTS] for rollout in prompt]
            for rollout, judgement in zip(rollouts, in_order(rollouts, judge(rollouts)), strict=True):
                if scored(judgement):
                    judged.append(judgement)
                else:
                    quarantine.add(_refused(rollout, judgement))
            context.progress(min(start + _PROMPTS, len(prompts)), len(prompts), "prompts")
    refused, every = quarantine.summary, sum(map(len, prompts))
    if not judged or refused["quarantined"] > config.max_bad_share * every:
        raise StageError(
            f"the judge has no score for {refused['quarantined']} of {every} answers, more than max_bad_share "
            f"{config.max_bad_share:g} allows: {refused['quarantine_reasons']}. Mend the judge, or raise "
            "data.max_bad_share"
        )
    write_rows(context.output / RECORDS, [asdict(judgement) for judgement in judged], JUDGEMENTS)
    return {"judgements": len(judged), "mean_score": sum(j.score for j in judged) / len(judged), **refused}


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
