"""An engine that answers prompts, held by a worker."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa

from stages.core.errors import RowError
from stages.core.records import ROLLOUTS, messages_of
from stages.generate import engines
from stages.generate.config import RolloutConfig
from stages.generate.engine import Sample, distinct
from stages.generate.serving import weights_for
from stages.io.allocator import keep_freed_memory
from stages.io.artifact import Artifact
from stages.io.filenames import RECORDS
from stages.io.output import PartWriter
from stages.io.parts import assigned_cpus
from stages.io.quarantine import Quarantine
from stages.io.streams import Take, Task, Write
from stages.io.tables import Rows
from stages.policy.load import load_encoder


@dataclass(eq=False)
class _Slice:
    """A slice of the prompts that is being answered."""

    task: Task
    rows: list[dict[str, Any]] = field(default_factory=list)
    prompts: list[list[int]] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)
    answers: dict[int, list[Sample]] = field(default_factory=dict)

    @property
    def answered(self) -> bool:
        return len(self.answers) == len(self.rows)


class Generator:
    """Holds the engine; makes rollouts of slices of the prompts."""

    def __init__(
        self, config: RolloutConfig, prompts: Artifact, policy: Artifact, adapter_base: Artifact | None, gpus: float
    ) -> None:
        keep_freed_memory()
        self.config = config
        self.policy = policy.fingerprint
        self.prompts = Rows(prompts.tables(RECORDS))
        weights = weights_for(policy, adapter_base)
        self.encoder = load_encoder(weights.model)
        self.engine = engines.make(config, weights, assigned_cpus(), gpus)
        self.sampling = json.dumps(config.sampling(), sort_keys=True)

    def stream(self, take: Take) -> Iterator[tuple[Task, Write]]:
        """Answer slices as they are taken. The next is begun as soon as the engine has room, not when the longest
        answer of the one before has come to its end."""
        in_hand: list[_Slice] = []
        while True:
            while self._waiting(in_hand) < self.engine.room:
                if (task := take(not in_hand)) is None:
                    break
                in_hand.append(self._begin(task))
            if not in_hand:
                return
            for (begun, row), samples in self.engine.step():
                begun.answers[row] = samples
            for begun in [each for each in in_hand if each.answered]:
                in_hand.remove(begun)
                yield begun.task, partial(self._write, begun.refused, self._answered(begun))

    def _waiting(self, in_hand: Sequence[_Slice]) -> int:
        """The sequences that are not finished."""
        return sum(len(each.rows) - len(each.answers) for each in in_hand) * distinct(self.config)

    def _begin(self, task: Task) -> _Slice:
        begun = _Slice(task)
        for row in self.prompts.slice(task["start"], task["stop"]).to_pylist():
            try:
                begun.prompts.append(self._prompt(row))
                begun.rows.append(row)
            except RowError as error:
                begun.refused.append(Quarantine.row(row["source"], error, row["messages"][-1]["content"]))
        for row, prompt in enumerate(begun.prompts):
            self.engine.add((begun, row), prompt)
        return begun

    def _answered(self, begun: _Slice) -> list[dict[str, Any]]:
        return [
            self._row(row, prompt, number, sample)
            for index, (row, prompt) in enumerate(zip(begun.rows, begun.prompts, strict=True))
            for number, sample in enumerate(begun.answers[index])
        ]

    def _write(self, refused: Sequence[Any], made: Sequence[dict[str, Any]], part: PartWriter) -> None:
        quarantine = part.quarantine
        for row in refused:
            quarantine.add(row)
        part.table(RECORDS, [pa.Table.from_pylist(list(made), schema=ROLLOUTS)], ROLLOUTS)
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

    def _row(self, row: Mapping[str, Any], prompt: list[int], number: int, sample: Sample) -> dict[str, Any]:
        return {
            "prompt_id": row["prompt_id"],
            "sample": number,
            "messages": row["messages"],
            "tools": row["tools"],
            "metadata": row["metadata"],
            "text": self.encoder.tokenizer.decode(sample.token_ids, skip_special_tokens=True),
            "tokens": len(sample.token_ids),
            "finish_reason": sample.finish_reason,
            "prompt_ids": prompt,
            "ids": sample.token_ids,
            "policy": self.policy,
            "sampling": self.sampling,
        }
