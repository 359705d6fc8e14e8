"""Judged rollouts become preference pairs.

An item is a rollout with its score. Which items of a prompt are paired is decided on these alone; token ids, which take
far more memory, come in when a pair is made.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from types import MappingProxyType
from typing import NamedTuple

from stages.core.records import Judgement, PairIds, PreferencePair, Rollout
from stages.judge.config import PairConfig

Scored = tuple[Rollout, float]
Ids = tuple[list[int], list[int]]
"""The token ids of a prompt and of an answer to it."""


class Match(NamedTuple):
    """Two answers to a prompt, the first of which is preferred with ``probability``."""

    chosen: Rollout
    rejected: Rollout
    probability: float


class Matches(NamedTuple):
    """What a prompt's answers gave: its pairs, and how many answers only repeated another one."""

    pairs: list[Match]
    copies: int


def join(rollouts: Iterable[Rollout], judgements: Iterable[Judgement]) -> dict[str, list[Scored]]:
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
    groups: dict[str, list[Scored]] = defaultdict(list)
    for rollout in rollouts:
        key = (rollout.prompt_id, rollout.sample)
        if key not in scores:
            raise ValueError(f"no judgement for sample {key[1]} of prompt {key[0]}")
        groups[rollout.prompt_id].append((rollout, scores[key]))
    return dict(groups)


Preferences = Mapping[tuple[int, int], float]
"""For the first of two samples of a prompt, as a judge or an ensemble that compares has said."""


def match(scored: Sequence[Scored], config: PairConfig, said: Preferences = MappingProxyType({})) -> Matches:
    """The pairs of one prompt's answers, whatever order these come in. ``said`` are the preferences that
    ``config.soft.votes`` takes for probabilities.

    Empty answers are ignored, and answers with the same text but for white space count once. No two answers are paired
    twice. Random choices depend on ``config.seed`` and the prompt's id alone.
    """
    answers = [item for item in penalised(scored, config) if item[0].text.strip()]
    kept = distinct(answers)
    if not kept:
        return Matches([], 0)
    chosen = _STRATEGIES[config.strategy](kept, config)
    pairs = [Match(better[0], worse[0], _probability(better, worse, config, said)) for better, worse in chosen]
    if config.soft is not None and config.soft.votes:
        pairs = [each for each in pairs if each.probability > 0.5]  # scores are of all comparisons, not of these two
    return Matches(pairs, len(answers) - len(kept))


def preference_pair(match: Match, ids: Mapping[int, Ids]) -> PreferencePair:
    """A match as a pair to train on, with the ``ids`` of its samples, if they are known. Lists of ids are shared, not
    copied: an answer may be in as many pairs as there are other answers."""
    chosen, rejected, probability = match
    prompt_ids, chosen_ids = ids.get(chosen.sample, ([], []))
    return PreferencePair(
        prompt=chosen.messages,
        chosen=({"role": "assistant", "content": chosen.text},),
        rejected=({"role": "assistant", "content": rejected.text},),
        chosen_ended=chosen.finish_reason == "stop",
        rejected_ended=rejected.finish_reason == "stop",
        probability=probability,
        tools=chosen.tools,
        ids=PairIds(prompt_ids, chosen_ids, ids[rejected.sample][1]) if chosen_ids else None,
        source=f"prompt {chosen.prompt_id} samples {chosen.sample}, {rejected.sample}",
    )


def penalised(scored: Sequence[Scored], config: PairConfig) -> list[Scored]:
    """Scores less the penalty for length: r(x, a) - lambda |a|, eq. 9 of RLHF Workflow (Dong et al., arXiv:2405.07863),
    with |a| in tokens instead of characters."""
    penalty = config.length_control.penalty if config.length_control else 0.0
    return [(rollout, score - penalty * rollout.tokens) for rollout, score in scored]


def distinct(answers: Iterable[Scored]) -> list[Scored]:
    """Answers by sample; of those with the same text but for white space the best one, among equals the earliest."""
    best: dict[str, Scored] = {}
    for item in sorted(answers, key=_sample):
        text = " ".join(item[0].text.split())
        if text not in best or item[1] > best[text][1]:
            best[text] = item
    return sorted(best.values(), key=_sample)


def accepted(answers: Sequence[Scored], beta: float, samples: int, draw: Callable[[], float]) -> list[Scored]:
    """At most ``samples`` answers, drawn without replacement from about the policy that is optimal for the scores:
    statistical rejection sampling (Liu et al., arXiv:2309.06657, algorithm 1 and theorem 1).

    In every turn each answer that is left is accepted with probability exp((r - r_max) / beta), r_max being the best
    score among those left. So a turn accepts one at least: the best.

    Args:
        draw: a random number from 0 to below 1.
    """
    left, taken = list(answers), list[Scored]()
    while left and len(taken) < samples:
        highest = max(score for _, score in left)
        drawn = [(item, draw() < math.exp((item[1] - highest) / beta)) for item in left]
        taken += [item for item, accept in drawn if accept]
        left = [item for item, accept in drawn if not accept]
    return taken[:samples]


def _best_vs_worst(answers: Sequence[Scored], config: PairConfig) -> list[_Two]:
    """The highest-scored answer against the lowest; among equal scores the earlier sample counts. The recipe of
    Snorkel-Mistral-PairRM-DPO, with five answers, and of RLHF Workflow (arXiv:2405.07863), with eight."""
    two = max(answers, key=_score), min(answers, key=_score)
    return [two] if _fit(*two, config) else []


def _best_vs_random(answers: Sequence[Scored], config: PairConfig) -> list[_Two]:
    """The highest-scored answer against any of those that make a pair with it."""
    best = max(answers, key=_score)
    others = [other for other in answers if _fit(best, other, config)]
    return [(best, others[int(_draws(answers, config)() * len(others))])] if others else []


def _all(answers: Sequence[Scored], config: PairConfig) -> list[_Two]:
    """Every two answers that make a pair, those that differ most in score first, up to the most that are wanted."""
    ordered = sorted(answers, key=_score, reverse=True)
    found = [two for two in combinations(ordered, 2) if _fit(*two, config)]
    return sorted(found, key=_margin, reverse=True)[: config.max_pairs]


def _rejection_sampling(answers: Sequence[Scored], config: PairConfig) -> list[_Two]:
    """Accepted answers paired two by two at random and told apart by their scores: RSO's first-round ranking
    (arXiv:2309.06657, section 5.2), n / 2 pairs from n answers."""
    draw = _draws(answers, config)
    some = accepted(answers, config.rejection.beta, config.rejection.samples, draw)
    shuffled = sorted(some, key=lambda _: draw())  # the first turns accepted the better ones
    twos = [sorted(two, key=_score, reverse=True) for two in zip(shuffled[::2], shuffled[1::2], strict=False)]
    return [(better, worse) for better, worse in twos if _fit(better, worse, config)]


_Two = tuple[Scored, Scored]
"""The better of two answers, and the worse."""
_STRATEGIES: dict[str, Callable[[Sequence[Scored], PairConfig], list[_Two]]] = {
    "best_vs_worst": _best_vs_worst,
    "best_vs_random": _best_vs_random,
    "all": _all,
    "rejection_sampling": _rejection_sampling,
}


def _draws(answers: Sequence[Scored], config: PairConfig) -> Callable[[], float]:
    """Random numbers from 0 to below 1, the same for a prompt wherever and whenever its pairs are made.

    Of all that Python's generator offers, only these are promised to stay the same in later versions."""
    return random.Random(f"{config.seed}/{answers[0][0].prompt_id}").random


def _fit(better: Scored, worse: Scored, config: PairConfig) -> bool:
    """Whether two answers are far enough apart in score and the chosen one is not too long beside the other."""
    margin, control = _margin((better, worse)), config.length_control
    if margin <= 0 or margin < config.min_margin:
        return False
    return control is None or control.max_ratio is None or better[0].tokens <= control.max_ratio * worse[0].tokens


def _probability(better: Scored, worse: Scored, config: PairConfig, said: Preferences) -> float:
    """That the better answer is preferred: 1 or, softly, sigmoid((r_chosen - r_rejected) / temperature), the model of
    Bradley and Terry (1952, doi 10.2307/2334029) for rewards in units of the temperature; or what was said of the two,
    0.5 where nothing was."""
    if config.soft is None:
        return 1.0
    if config.soft.temperature is not None:
        return 1 / (1 + math.exp(-_margin((better, worse)) / config.soft.temperature))
    one, two = _sample(better), _sample(worse)
    return said[one, two] if (one, two) in said else 1 - said.get((two, one), 0.5)


def _sample(item: Scored) -> int:
    return item[0].sample


def _score(item: Scored) -> float:
    return item[1]


def _margin(two: _Two) -> float:
    return two[0][1] - two[1][1]
