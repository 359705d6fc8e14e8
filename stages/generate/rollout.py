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
from stages.generate.config import RolloutConfig, choose_engine
from stages.io.filenames import RECORDS
from stages.io.parts import map_actors
from stages.io.quarantine import Quarantine
from stages.io.tables import read_table, write_table
from stages.policy.load import load_encoder

TOO_LONG = "too_long"
"""Finish reason of the rows that stand for prompts without room for an answer, on their way to quarantine."""
_SEQUENCES = 128
"""Sequences a call: enough to fill an engine's batch, few enough to show progress."""


def run(config: RolloutConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Sample every prompt; ``records.arrow`` holds one row a sample, in the prompts' order.

    Raises:
        StageError: no prompt leaves room for an answer, or every answer is empty.
    """
    prompts = inputs["prompts"].path / RECORDS
    total = read_table(prompts).num_rows
    size = max(1, _SEQUENCES // config.samples)
    tasks = [{"file": str(prompts), "start": at, "stop": min(at + size, total)} for at in range(0, total, size)]
    base = inputs.get("adapter_base")
    gpu = context.resources.gpus > 0
    weights = engines.weights_for(
        inputs["policy"].path, inputs["policy"].fingerprint, base.path if base else None, gpu
    )
    tables = map_actors(
        tasks, Generator, context.resources, engines.environment(config, gpu),
        config=config, weights=weights, policy=inputs["policy"].fingerprint,
    )  # fmt: skip
    rejected: list[dict[str, str]] = []
    stats = {"rollouts": 0, "tokens": 0, "cut_off": 0, "empty": 0}

    def counted() -> Iterator[pa.Table]:
        for table in tables:
            fits = [reason != TOO_LONG for reason in table["finish_reason"].to_pylist()]
            rejected.extend(_reject(config, row) for row in table.filter(pa.compute.invert(pa.array(fits))).to_pylist())
            table = table.filter(pa.array(fits))
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
        raise StageError(f"no prompt leaves room for an answer: {quarantine.summary['quarantine_reasons']}")
    if stats["empty"] == stats["rollouts"]:
        raise StageError("every answer is empty: does the model fit its chat template?")
    return {**stats, **quarantine.summary, "prompts": total - len(rejected), "engine": choose_engine(config.engine)}


class Generator:
    """Holds the engine; maps slices of the prompts file to rollouts."""

    def __init__(self, config: RolloutConfig, weights: engines.Weights, policy: str, cpus: int) -> None:
        self.config = config
        self.policy = policy
        self.encoder = load_encoder(weights.model)
        self.engine = engines.make(config, weights, cpus)
        self.sampling = json.dumps(config.model_dump(mode="json", exclude={"engine"}), sort_keys=True)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for task in batch.to_pylist():
            rows = read_table(Path(task["file"])).slice(task["start"], task["stop"] - task["start"]).to_pylist()
            ids = [self.encoder.prompt(messages_of(row["messages"])) for row in rows]
            fits = [len(prompt) <= self.config.max_length - self.config.max_tokens for prompt in ids]
            room = [prompt for prompt, ok in zip(ids, fits, strict=True) if ok]
            answers = iter(self.engine.generate(room) if room else [])
            samples = [next(answers) if ok else [engines.Sample([], TOO_LONG)] for ok in fits]
            yield pa.Table.from_pylist(
                [
                    {
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
                    for row, given in zip(rows, samples, strict=True)
                    for number, sample in enumerate(given)
                ],
                schema=pa.schema([*ROLLOUTS, ("source", pa.string())]),
            )


def _reject(config: RolloutConfig, row: Mapping[str, Any]) -> dict[str, str]:
    room = config.max_length - config.max_tokens
    reason = f"longer than {room} tokens (rollout.max_length {config.max_length} less rollout.max_tokens)"
    return Quarantine.row(row["source"], RowError("prompt", reason), row["messages"][-1]["content"])
