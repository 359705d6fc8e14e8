"""Judged rollouts become the preference pairs of a round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from stages.base import StageError, Summary
from stages.core.records import PAIRS, Judgement, PreferencePair, Rollout, pair_row
from stages.io.artifact import Artifact, Table
from stages.io.context import StageContext
from stages.io.filenames import RECORDS
from stages.io.output import PartWriter
from stages.io.parts import run_parts
from stages.io.tables import read_table, rows_of
from stages.judge import pairing
from stages.judge.asking import read_rollouts
from stages.judge.config import PairConfig


def run(config: PairConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Pair the best with the worst answer to each prompt; a part has the pairs of a part of the rollouts.

    Raises:
        StageError: no prompt gave a pair.
    """
    tables = inputs["rollouts"].tables(RECORDS)
    tasks = [{"part": table.part.name, "rows": table.rows, "table": number} for number, table in enumerate(tables)]
    counts = run_parts(
        tasks,
        "stages.judge.pair:Pairing",
        context,
        "answers",
        config=config,
        rollouts=inputs["rollouts"],
        judgements=inputs["judgements"],
    )
    pairs, alone = counts["rows"], counts["prompts_without_pair"]
    if not pairs:
        raise StageError(
            f"none of {alone} prompts gave a pair: no two answers differ in score by {config.min_margin}; "
            "lower pair.min_margin, raise rollout.samples or rollout.temperature, or take a finer judge"
        )
    return {"pairs": pairs, "prompts_without_pair": alone}


class Pairing:
    """Makes pairs of parts of the rollouts and the judgements of these."""

    def __init__(self, config: PairConfig, rollouts: Artifact, judgements: Artifact) -> None:
        self._config = config
        self._rollouts, self._judgements = rollouts.tables(RECORDS), judgements.tables(RECORDS)

    def __call__(self, task: Mapping[str, Any], part: PartWriter) -> None:
        table = self._rollouts[task["table"]]
        judgements = [Judgement(**row) for row in rows_of([self._judgements[task["table"]]])]
        scored = {(each.prompt_id, each.sample) for each in judgements}  # the judge may have had no score for some
        rollouts = [each for each in read_rollouts(table) if (each.prompt_id, each.sample) in scored]
        groups = pairing.join(rollouts, judgements)
        pairs = self._pairs(table, list(groups.values()))
        part.table(RECORDS, [pa.Table.from_pylist([pair_row(pair) for pair in pairs], schema=PAIRS)], PAIRS)
        part.counts["prompts_without_pair"] = len(groups) - len(pairs)

    def _pairs(self, table: Table, groups: Sequence[Sequence[tuple[Rollout, float]]]) -> list[PreferencePair]:
        sampled = _Sampled(table)
        found = [pairing.best_vs_worst(sampled.ids_of(group), self._config.min_margin) for group in groups]
        return [pair for pair in found if pair]


class _Sampled:
    """The token ids of rollouts, read for one prompt at a time."""

    def __init__(self, table: Table) -> None:
        self._table = read_table(table.path)
        keys = zip(self._table["prompt_id"].to_pylist(), self._table["sample"].to_pylist(), strict=True)
        self._rows = {key: row for row, key in enumerate(keys)}

    def ids_of(self, group: Sequence[tuple[Rollout, float]]) -> list[tuple[Rollout, float]]:
        found = []
        for rollout, score in group:
            row = self._rows[rollout.prompt_id, rollout.sample]
            prompt_ids, ids = (self._table[name][row].as_py() or () for name in ("prompt_ids", "ids"))
            found.append((replace(rollout, prompt_ids=prompt_ids, ids=ids), score))
        return found
