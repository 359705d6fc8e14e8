"""Judged rollouts become preference pairs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from stages.core.records import Judgement, PairIds, PreferencePair, Rollout


def join(rollouts: Iterable[Rollout], judgements: Iterable[Judgement]) -> dict[str, list[tuple[Rollout, float]]]:
    """Rollouts with their scores by prompt, in order.

    Raises:
        ValueError: a rollout has no judgement, or more than one.
    """
    scores: dict[tuple[str, int], float] = {}
    for judgement in judgements:
        key = (judgement.prompt_id, judgement.sample)
        if key in scores:
            raise ValueError(f"two judgements for sample {key[1]} of prompt {key[0]}")
        scores[key] = judgement.score
    groups: dict[str, list[tuple[Rollout, float]]] = defaultdict(list)
    for rollout in rollouts:
        key = (rollout.prompt_id, rollout.sample)
        if key not in scores:
            raise ValueError(f"no judgement for sample {key[1]} of prompt {key[0]}")
        groups[rollout.prompt_id].append((rollout, scores[key]))
    return dict(groups)


def best_vs_worst(scored: Sequence[tuple[Rollout, float]], min_margin: float = 0.0) -> PreferencePair | None:
    """The highest-scored response against the lowest, or None if their scores are equal or closer than
    ``min_margin``. Among equal scores the earlier sample counts. Empty responses are ignored."""
    usable = [item for item in scored if item[0].text.strip()]
    if len(usable) < 2:
        return None
    best = max(usable, key=lambda item: item[1])
    worst = min(usable, key=lambda item: item[1])
    margin = best[1] - worst[1]
    if margin <= 0 or margin < min_margin or best[0].text == worst[0].text:
        return None
    return PreferencePair(
        prompt=best[0].messages,
        chosen=({"role": "assistant", "content": best[0].text},),
        rejected=({"role": "assistant", "content": worst[0].text},),
        chosen_ended=best[0].finish_reason == "stop",
        rejected_ended=worst[0].finish_reason == "stop",
        tools=best[0].tools,
        ids=PairIds(list(best[0].prompt_ids), list(best[0].ids), list(worst[0].ids)) if best[0].ids else None,
        source=f"prompt {best[0].prompt_id} samples {best[0].sample}, {worst[0].sample}",
    )
