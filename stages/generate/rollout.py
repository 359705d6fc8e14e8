"""The policy answers prompts: n samples each, by a generation engine that lives inside the stage only."""

from __future__ import annotations

from collections.abc import Mapping

from stages.base import StageError, Summary
from stages.generate import serving
from stages.generate.config import RolloutConfig
from stages.io.artifact import Artifact
from stages.io.context import StageContext
from stages.io.filenames import RECORDS
from stages.io.parts import run_parts, slices

_SEQUENCES = 128
"""Sequences of a part: few enough to show progress and to do again after a crash."""

_AT_ONCE = 16
"""Parts that one of several engines may have in hand: more sequences than it works on at a time."""


def run(config: RolloutConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Sample every prompt; ``records.arrow`` holds one row per sample, in the prompts' order.

    Raises:
        StageError: no prompt can be answered (it leaves no room, or the template refuses it), or all answers are empty.
    """
    total = sum(table.rows for table in inputs["prompts"].tables(RECORDS))
    gpu = context.resources.gpus > 0
    counts = run_parts(
        slices(total, max(1, _SEQUENCES // config.samples)), "stages.generate.generator:Generator", context, "prompts",
        serving.environment(config, gpu), config=config, prompts=inputs["prompts"], policy=inputs["policy"],
        adapter_base=inputs.get("adapter_base") if gpu else None, gpus=context.resources.gpus,
        at_once=_AT_ONCE,
    )  # fmt: skip
    counts = {"rollouts": counts.pop("rows"), **counts}
    if not counts["rollouts"]:
        raise StageError(f"no prompt can be answered: {counts['quarantine_reasons']}")
    if counts["empty"] == counts["rollouts"]:
        raise StageError("every answer is empty: does the model fit its chat template?")
    return {**counts, "prompts": total - counts["quarantined"], "engine": config.engine}
