"""A judge scores the rollouts, whole prompts at a time."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from stages.base import Artifact, StageContext, StageError, Summary
from stages.core.records import JUDGEMENTS, Judgement, Rollout, messages_of
from stages.io.filenames import RECORDS
from stages.io.tables import read_rows, write_rows
from stages.judge import builtin
from stages.judge.config import JudgeStageConfig

_PROMPTS = 16


def read_rollouts(folder: Path) -> list[Rollout]:
    names = Rollout.__dataclass_fields__
    rows = ({**row, "messages": messages_of(row["messages"])} for row in read_rows(folder / RECORDS))
    return [Rollout(**{name: row[name] for name in names}) for row in rows]


def run(config: JudgeStageConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Judge every rollout; ``records.arrow`` keeps their order.

    Raises:
        StageError: the judge left a rollout out, judged one twice, or gave a score that is not a finite number.
    """
    judge = builtin.make(config.judge)
    prompts = [list(group) for _, group in groupby(read_rollouts(inputs["rollouts"].path), lambda r: r.prompt_id)]
    judged: list[Judgement] = []
    for start in range(0, len(prompts), _PROMPTS):
        rollouts = [rollout for prompt in prompts[start : start + _PROMPTS] for rollout in prompt]
        judged += in_order(rollouts, judge(rollouts))
        context.progress(min(start + _PROMPTS, len(prompts)), len(prompts), "prompts")
    write_rows(context.output / RECORDS, [asdict(judgement) for judgement in judged], JUDGEMENTS)
    return {"judgements": len(judged), "mean_score": sum(j.score for j in judged) / len(judged)}


def in_order(rollouts: Sequence[Rollout], judgements: Sequence[Judgement]) -> list[Judgement]:
    """The judgements in the rollouts' order, each checked."""
    by_key = {(j.prompt_id, j.sample): j for j in judgements}
    wanted = [(r.prompt_id, r.sample) for r in rollouts]
    if len(judgements) != len(wanted) or set(by_key) != set(wanted):
        raise StageError(f"the judge gave {len(judgements)} judgements for {len(wanted)} rollouts; it owes one each")
    for judgement in by_key.values():
        if not isinstance(judgement.score, numbers.Real) or not math.isfinite(judgement.score):
            raise StageError(f"the judge's score for prompt {judgement.prompt_id} is {judgement.score!r}, not a number")
    return [by_key[key] for key in wanted]
