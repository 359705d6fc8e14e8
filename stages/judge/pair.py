"""Judged rollouts become the preference pairs of a round."""

from __future__ import annotations

from collections.abc import Mapping

from stages.base import Artifact, StageContext, StageError, Summary
from stages.core.records import PAIRS, Judgement, pair_row
from stages.io.filenames import RECORDS
from stages.io.tables import read_rows, write_rows
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
    found = [pairing.best_vs_worst(group, config.min_margin) for group in groups.values()]
    pairs = [pair for pair in found if pair]
    if not pairs:
        raise StageError(
            f"none of {len(groups)} prompts gave a pair: no two answers differ in score by {config.min_margin}; "
            "lower pair.min_margin, raise rollout.samples or rollout.temperature, or take a finer judge"
        )
    write_rows(context.output / RECORDS, [pair_row(pair) for pair in pairs], PAIRS)
    return {"pairs": len(pairs), "prompts_without_pair": len(groups) - len(pairs)}
