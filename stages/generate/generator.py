"""An engine that answers prompts, held by a worker."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from stages.core.errors import RowError
from stages.core.records import ROLLOUTS, messages_of
from stages.generate import engines
from stages.generate.config import RolloutConfig
from stages.generate.serving import weights_for
from stages.io.allocator import keep_freed_memory
from stages.io.artifact import Artifact
from stages.io.filenames import RECORDS
from stages.io.output import PartWriter
from stages.io.parts import assigned_cpus
from stages.io.quarantine import Quarantine
from stages.io.tables import Rows
from stages.policy.load import load_encoder


class Generator:
    """Holds the engine; makes rollouts of slices of the prompts."""

    def __init__(
        self, config: RolloutConfig, prompts: Artifact, policy: Artifact, adapter_base: Artifact | None
    ) -> None:
        keep_freed_memory()
        self.config = config
        self.policy = policy.fingerprint
        self.prompts = Rows(prompts.tables(RECORDS))
        weights = weights_for(policy, adapter_base)
        self.encoder = load_encoder(weights.model)
        self.engine = engines.make(config, weights, assigned_cpus())
        self.sampling = json.dumps(config.model_dump(mode="json", exclude={"engine"}), sort_keys=True)

    def __call__(self, task: Mapping[str, Any], part: PartWriter) -> None:
        rows, prompts, quarantine = [], [], part.quarantine
        for row in self.prompts.slice(task["start"], task["stop"]).to_pylist():
            try:
                prompts.append(self._prompt(row))
                rows.append(row)
            except RowError as error:
                quarantine.add(Quarantine.row(row["source"], error, row["messages"][-1]["content"]))
        answers = self.engine.generate(prompts) if prompts else []
        made = [
            self._row(row, prompt, number, sample)
            for row, prompt, samples in zip(rows, prompts, answers, strict=True)
            for number, sample in enumerate(samples)
        ]
        part.table(RECORDS, [pa.Table.from_pylist(made, schema=ROLLOUTS)], ROLLOUTS)
        part.counts |= {
            "tokens": sum(row["tokens"] for row in made),
            "cut_off": sum(row["finish_reason"] == "length" for row in made),
            "empty": sum(not row["text"].strip() for row in made),
        }

    def close(self) -> None:
        self.engine.close()

    def _prompt(self, row: Mapping[str, Any]) -> list[int]:
        """A prompt's tokens.

        Raises:
            RowError: it cannot be answered.
        """
        ids = self.encoder.prompt(messages_of(row["messages"]), row["tools"])
        config = self.config
        if len(ids) <= (room := config.max_length - config.max_tokens):
            return ids
        reason = f"longer than {room} tokens (rollout.max_length {config.max_length} less rollout.max_tokens)"
        raise RowError("prompt", reason)

    def _row(self, row: Mapping[str, Any], prompt: list[int], number: int, sample: engines.Sample) -> dict[str, Any]:
        return {
            "prompt_id": row["prompt_id"],
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
