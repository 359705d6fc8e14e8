"""Judged rollouts become the preference pairs of a round."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa

from stages.base import StageError, Summary
from stages.core.records import PAIRS, Judgement, PreferencePair, pair_row
from stages.io.artifact import Artifact, Table
from stages.io.context import StageContext
from stages.io.filenames import RECORDS, VERDICT_RECORDS
from stages.io.output import PartWriter
from stages.io.parts import run_parts
from stages.io.tables import read_table, rows_of
from stages.judge import pairing
from stages.judge.asking import read_rollouts
from stages.judge.config import PairConfig

_AT_ONCE = 512
"""Pairs that are written together; with strategy ``all`` a part may have thousands of a prompt."""


def run(config: PairConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Pair better with worse answers to each prompt; a part has the pairs of a part of the rollouts.

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
    pairs, alone, copies = counts["rows"], counts["prompts_without_pair"], counts["copies"]
    if not pairs:
        raise StageError(f"none of {alone} prompts gave a pair: {_why_none(config, copies)}")
    return {"pairs": pairs, "prompts_without_pair": alone, "copies": copies}


def _why_none(config: PairConfig, copies: int) -> str:
    """What keeps answers from making pairs, and what to do about it."""
    reason = f"no two answers differ in score{f' by {config.min_margin}' if config.min_margin else ''}"
    advice = ["lower pair.min_margin"] if config.min_margin else []
    control = config.length_control
    if control is not None and control.penalty:
        reason += f", less {control.penalty} for each token"
        advice.append("lower pair.length_control.penalty")
    if control is not None and control.max_ratio is not None:
        reason += f", with the better one at most {control.max_ratio} times as long"
        advice.append("raise pair.length_control.max_ratio")
    if copies:
        reason += f", and {copies} answers only repeat another one"
    advice.append("raise rollout.samples or rollout.temperature")
    return f"{reason}; {', '.join(advice)}, or take a finer judge"


class Pairing:
    """Makes pairs of parts of the rollouts and the judgements of these."""

    def __init__(self, config: PairConfig, rollouts: Artifact, judgements: Artifact) -> None:
        self._config = config
        self._rollouts, self._judgements = rollouts.tables(RECORDS), judgements.tables(RECORDS)
        self._verdicts = {table.part.name: table for table in judgements.tables(VERDICT_RECORDS)}

    def __call__(self, task: Mapping[str, Any], part: PartWriter) -> None:
        table = self._rollouts[task["table"]]
        judgements = [Judgement(**row) for row in rows_of([self._judgements[task["table"]]])]
        scored = {(each.prompt_id, each.sample) for each in judgements}  # the judge may have had no score for some
        rollouts = [each for each in read_rollouts(table) if (each.prompt_id, each.sample) in scored]
        groups = pairing.join(rollouts, judgements)
        part.counts |= {"prompts_without_pair": 0, "copies": 0}
        part.table(RECORDS, _tables(self._pairs(table, groups, part.counts)), PAIRS)

    def _pairs(
        self, table: Table, groups: Mapping[str, Sequence[pairing.Scored]], counts: dict[str, Any]
    ) -> Iterator[PreferencePair]:
        sampled, said = _Sampled(table), self._said(table)
        for prompt, group in groups.items():
            found = pairing.match(group, self._config, said.get(prompt, {}))
            counts["prompts_without_pair"] += not found.pairs
            counts["copies"] += found.copies
            ids = sampled.ids_of(found.pairs)
            yield from (pairing.preference_pair(match, ids) for match in found.pairs)

    def _said(self, table: Table) -> dict[str, dict[tuple[int, int], float]]:
        """The preferences of each prompt's answers, if they are asked for."""
        said: dict[str, dict[tuple[int, int], float]] = defaultdict(dict)
        if self._config.soft is not None and self._config.soft.votes and table.part.name in self._verdicts:
            for row in rows_of([self._verdicts[table.part.name]]):
                said[row["prompt_id"]][row["first"], row["second"]] = row["preference"]
        return said


def _tables(pairs: Iterator[PreferencePair]) -> Iterator[pa.Table]:
    while some := [pair_row(pair) for pair in islice(pairs, _AT_ONCE)]:
        yield pa.Table.from_pylist(some, schema=PAIRS)


class _Sampled:
    """The token ids of rollouts, read for one prompt at a time."""

    def __init__(self, table: Table) -> None:
        self._table = read_table(table.path)
        keys = zip(self._table["prompt_id"].to_pylist(), self._table["sample"].to_pylist(), strict=True)
        self._rows = {key: row for row, key in enumerate(keys)}

    def ids_of(self, matches: Iterable[pairing.Match]) -> dict[int, pairing.Ids]:
        """The ids of the answers that are in a pair of one prompt, by sample, each read once."""
        answers = {answer.sample: answer for match in matches for answer in match[:2]}
        rows = {sample: self._rows[answer.prompt_id, sample] for sample, answer in answers.items()}
        return {sample: (self._ids("prompt_ids", row), self._ids("ids", row)) for sample, row in rows.items()}

    def _ids(self, name: str, row: int) -> list[int]:
        return self._table[name][row].as_py() or []
