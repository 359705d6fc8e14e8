"""The policy answers prompts: n samples each, by a generation engine that lives inside the stage only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stages.base import Artifact, StageContext, StageError, Summary
from stages.core.errors import RowError
from stages.core.records import ROLLOUTS
from stages.generate import serving
from stages.generate.config import RolloutConfig
from stages.generate.serving import REFUSED
from stages.io.filenames import RECORDS
from stages.io.parts import map_actors
from stages.io.quarantine import Quarantine
from stages.io.tables import read_table, write_table

_SEQUENCES = 128
"""Sequences a call: enough to fill an engine's batch, few enough to show progress."""


def run(config: RolloutConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Sample every prompt; ``records.arrow`` holds one row per sample, in the prompts' order.

    Raises:
        StageError: no prompt can be answered (it leaves no room, or the template refuses it), or all answers are empty.
    """
    prompts = inputs["prompts"].path / RECORDS
    total = read_table(prompts).num_rows
    size = max(1, _SEQUENCES // config.samples)
    tasks = [{"file": str(prompts), "start": at, "stop": min(at + size, total)} for at in range(0, total, size)]
    base = inputs.get("adapter_base")
    gpu = context.resources.gpus > 0
    weights = serving.weights_for(inputs["policy"].path, inputs["policy"].fingerprint, base.path if base else None, gpu)
    tables = map_actors(
        tasks, "stages.generate.generator:Generator", context.resources, serving.environment(config, gpu),
        config=config, weights=weights, policy=inputs["policy"].fingerprint,
    )  # fmt: skip
    rejected: list[dict[str, str]] = []
    stats = {"rollouts": 0, "tokens": 0, "cut_off": 0, "empty": 0}

    def counted() -> Iterator[pa.Table]:
        for table in tables:
            answered = pc.not_equal(table["finish_reason"], REFUSED)
            rejected.extend(_reject(row) for row in table.filter(pc.invert(answered)).to_pylist())
            table = table.filter(answered)
            stats["rollouts"] += table.num_rows
            stats["tokens"] += pc.sum(table["tokens"]).as_py() or 0
            stats["cut_off"] += sum(reason == "length" for reason in table["finish_reason"].to_pylist())
            stats["empty"] += sum(not text.strip() for text in table["text"].to_pylist())
            context.progress(stats["rollouts"] // config.samples, total, f"prompts, {stats['tokens']} tokens")
            yield table

    write_table(context.output / RECORDS, counted(), ROLLOUTS)
    with Quarantine(context.output) as quarantine:
        for row in rejected:
            quarantine.add(row)
    if not stats["rollouts"]:
        raise StageError(f"no prompt can be answered: {quarantine.summary['quarantine_reasons']}")
    if stats["empty"] == stats["rollouts"]:
        raise StageError("every answer is empty: does the model fit its chat template?")
    return {**stats, **quarantine.summary, "prompts": total - len(rejected), "engine": config.engine}


def _reject(row: Mapping[str, Any]) -> dict[str, str]:
    return Quarantine.row(row["source"], RowError(*row["refused"]), row["messages"][-1]["content"])
