"""An engine that answers prompts, held by a worker."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.core.errors import RowError
from stages.core.records import ROLLOUTS, messages_of
from stages.generate import engines
from stages.generate.config import RolloutConfig
from stages.generate.serving import REFUSED, Weights
from stages.io.allocator import keep_freed_memory
from stages.io.tables import read_table
from stages.policy.load import load_encoder


class Generator:
    """Holds the engine; maps slices of the prompts file to rollouts."""

    def __init__(self, config: RolloutConfig, weights: Weights, policy: str, cpus: int) -> None:
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
                        [
                            self._row(row, [], 0, engines.Sample([], REFUSED))
                            | {"refused": [prompt.field, prompt.reason]}
                        ]
                        if isinstance(prompt, RowError)
                        else [self._row(row, prompt, number, sample) for number, sample in enumerate(next(answers))]
                    )
                ],
                schema=pa.schema([*ROLLOUTS, ("source", pa.string()), ("refused", pa.list_(pa.string()))]),
            )

    def close(self) -> None:
        self.engine.close()

    def _prompt(self, row: Mapping[str, Any]) -> list[int] | RowError:
        """A prompt's tokens, or why it cannot be answered."""
        try:
            ids = self.encoder.prompt(messages_of(row["messages"]), row["tools"])
        except RowError as error:
            return error
        config = self.config
        if len(ids) <= (room := config.max_length - config.max_tokens):
            return ids
        reason = f"longer than {room} tokens (rollout.max_length {config.max_length} less rollout.max_tokens)"
        return RowError("prompt", reason)

    def _row(self, row: Mapping[str, Any], prompt: list[int], number: int, sample: engines.Sample) -> dict[str, Any]:
        return {
            "prompt_id": row["prompt_id"],
            "source": row["source"],
            "sample": number,
            "messages": row["messages"],
            "tools": row["tools"],
            "text": self.encoder.tokenizer.decode(sample.token_ids, skip_special_tokens=True),
            "tokens": len(sample.token_ids),
            "finish_reason": sample.finish_reason,
            "prompt_ids": prompt,
            "ids": sample.token_ids,
            "policy": self.policy,
            "sampling": self.sampling,
        }
