"""Judged rollouts become the preference pairs of a round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from stages.base import Artifact, StageContext, StageError, Summary
from stages.core.records import PAIRS, Judgement, Rollout, pair_row
from stages.io.filenames import RECORDS
from stages.io.tables import read_rows, read_table, write_rows
from stages.judge import pairing
from stages.judge.config import PairConfig
from stages.judge.judge import read_rollouts


def run(config: PairConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Pair the best with the worst answer to each prompt.

    Raises:
        StageError: no prompt gave a pair.
    """
    judgements = [Judgement(**row) for row in read_rows(inputs["judgements"].path / RECORDS)]
    scored = {(each.prompt_id, each.sample) for each in judgements}  # the judge may have had no score for some
    rollouts = [each for each in read_rollouts(inputs["rollouts"].path) if (each.prompt_id, each.sample) in scored]
    groups = pairing.join(rollouts, judgements)
    sampled = _Sampled(inputs["rollouts"].path)
    found = [pairing.best_vs_worst(sampled.ids_of(group), config.min_margin) for group in groups.values()]
    pairs = [pair for pair in found if pair]
    if not pairs:
        raise StageError(
            f"none of {len(groups)} prompts gave a pair: no two answers differ in score by {config.min_margin}; "
            "lower pair.min_margin, raise rollout.samples or rollout.temperature, or take a finer judge"
        )
    write_rows(context.output / RECORDS, [pair_row(pair) for pair in pairs], PAIRS)
    return {"pairs": len(pairs), "prompts_without_pair": len(groups) - len(pairs)}


class _Sampled:
    """The token ids of rollouts, read for one prompt at a time."""

    def __init__(self, folder: Path) -> None:
        self._table = read_table(folder / RECORDS)
        keys = zip(self._table["prompt_id"].to_pylist(), self._table["sample"].to_pylist(), strict=True)
        self._rows = {key: row for row, key in enumerate(keys)}

    def ids_of(self, group: Sequence[tuple[Rollout, float]]) -> list[tuple[Rollout, float]]:
        found = []
        for rollout, score in group:
            row = self._rows[rollout.prompt_id, rollout.sample]
            prompt_ids, ids = (self._table[name][row].as_py() or () for name in ("prompt_ids", "ids"))
            found.append((replace(rollout, prompt_ids=prompt_ids, ids=ids), score))
        return found
