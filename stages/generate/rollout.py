"""The policy answers prompts: n samples each, by a generation engine that lives inside the stage only."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.base import Artifact, StageContext, StageError, Summary
from stages.core.errors import RowError
from stages.core.records import ROLLOUTS, messages_of
from stages.generate import engines
from stages.generate.config import RolloutConfig
from stages.io.allocator import keep_freed_memory
from stages.io.filenames import RECORDS
from stages.io.parts import map_actors
from stages.io.quarantine import Quarantine
from stages.io.tables import read_table, write_table
from stages.policy.load import load_encoder

REFUSED = "refused"
"""Finish reason of the rows that stand for prompts that cannot be answered, on their way to quarantine."""
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
    weights = engines.weights_for(inputs["policy"].path, inputs["policy"].fingerprint, base.path if base else None, gpu)
    tables = map_actors(
        tasks, Generator, context.resources, engines.environment(config, gpu),
        config=config, weights=weights, policy=inputs["policy"].fingerprint,
    )  # fmt: skip
    rejected: list[dict[str, str]] = []
    stats = {"rollouts": 0, "tokens": 0, "cut_off": 0, "empty": 0}

    def counted() -> Iterator[pa.Table]:
        for table in tables:
            answered = pa.compute.not_equal(table["finish_reason"], REFUSED)
            rejected.extend(_reject(row) for row in table.filter(pa.compute.invert(answered)).to_pylist())
            table = table.filter(answered)
            stats["rollouts"] += table.num_rows
            stats["tokens"] += pa.compute.sum(table["tokens"]).as_py() or 0
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


class Generator:
    """Holds the engine; maps slices of the prompts file to rollouts."""

    def __init__(self, config: RolloutConfig, weights: engines.Weights, policy: str, cpus: int) -> None:
        keep_freed_memory()
        self.config = config
        self.policy = policy
        self.encoder = load_encoder(weights.model)
        self.engine = engines.make(config, weights, cpus)
        self.sampling = json.dumps(config.model_dump(mode="json", exclude={"engine"}), sort_keys=True)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for task in batch.to_pylist():
            rows = read_table(Path(task["file"])).slice(task["start"], task["stop"] - task["start"]).to_pylist()
            prompts = [self._prompt(row) for row in rows]
            usable = [prompt for prompt in prompts if not isinstance(prompt, RowError)]
            answers = iter(self.engine.generate(usable) if usable else [])
            yield pa.Table.from_pylist(
                [
                    made
                    for row, prompt in zip(rows, prompts, strict=True)
                    for made in (
                        [self._row(row, 0, engines.Sample([], REFUSED)) | {"refused": [prompt.field, prompt.reason]}]
                        if isinstance(prompt, RowError)
                        else [self._row(row, number, sample) for number, sample in enumerate(next(answers))]
                    )
                ],
                schema=pa.schema([*ROLLOUTS, ("source", pa.string()), ("refused", pa.list_(pa.string()))]),
            )

    def close(self) -> None:
        self.engine.close()

    def _prompt(self, row: Mapping[str, Any]) -> list[int] | RowError:
        """A prompt's tokens, or why it cannot be answered."""
        try:
            ids = self.encoder.prompt(messages_of(row["messages"]))
        except RowError as error:
            return error
        config = self.config
        if len(ids) <= (room := config.max_length - config.max_tokens):
            return ids
        reason = f"longer than {room} tokens (rollout.max_length {config.max_length} less rollout.max_tokens)"
        return RowError("prompt", reason)

    def _row(self, row: Mapping[str, Any], number: int, sample: engines.Sample) -> dict[str, Any]:
        return {
            "prompt_id": row["prompt_id"],
            "source": row["source"],
            "sample": number,
            "messages": row["messages"],
            "text": self.encoder.tokenizer.decode(sample.token_ids, skip_special_tokens=True),
            "tokens": len(sample.token_ids),
            "finish_reason": sample.finish_reason,
            "policy": self.policy,
            "sampling": self.sampling,
        }


def _reject(row: Mapping[str, Any]) -> dict[str, str]:
    return Quarantine.row(row["source"], RowError(*row["refused"]), row["messages"][-1]["content"])
