"""The answers of two policies to the same prompts, side by side, with what a judge says of them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stages.core.bootstrap import Floats
from stages.core.evaluation.comparisons import shares
from stages.core.records import Rollout
from stages.io.artifact import Artifact
from stages.io.filenames import RECORDS, VERDICT_RECORDS
from stages.io.tables import rows_of
from stages.judge.asking import read_rollouts

Scores = Mapping[str, Mapping[int, float]]
"""By prompt and sample."""


@dataclass(frozen=True)
class Side:
    """A policy's answers by prompt, and their scores if the judge gives such."""

    answers: Mapping[str, Sequence[Rollout]]
    scores: Scores | None

    @property
    def mean_score(self) -> float | None:
        if self.scores is None:
            return None
        return float(np.mean([score for prompt in self.scores.values() for score in prompt.values()]))

    def texts(self, prompts: Sequence[str]) -> list[str]:
        return [each.text for prompt in prompts for each in self.answers[prompt]]

    def lengths(self, prompts: Sequence[str]) -> Floats:
        """(prompts,): mean characters of a prompt's answers, which is what AlpacaEval counts."""
        return np.array([np.mean([len(each.text) for each in self.answers[prompt]]) for prompt in prompts])

    def prompt_scores(self, prompts: Sequence[str]) -> Floats | None:
        """(prompts,): mean score of a prompt's answers."""
        if self.scores is None:
            return None
        return np.array([np.mean(list(self.scores[prompt].values())) for prompt in prompts])


@dataclass(frozen=True)
class Comparison:
    """Per prompt, (prompts,) each, the shares of comparisons that the policy wins, ties and loses, and its win rate:
    the mean preference for it, a tie being half a win."""

    prompts: tuple[str, ...]
    wins: Floats
    ties: Floats
    losses: Floats
    rates: Floats


def side(rollouts: Artifact, judged: Artifact | None) -> Side:
    answers: dict[str, list[Rollout]] = defaultdict(list)
    for table in rollouts.tables(RECORDS):
        for each in read_rollouts(table):
            answers[each.prompt_id].append(each)
    if judged is None:
        return Side(answers, None)
    return Side(answers, _scores(judged))


def mean_scores(judged: Artifact) -> dict[str, float]:
    """The mean score of each prompt's answers."""
    return {prompt: float(np.mean([*scores.values()])) for prompt, scores in _scores(judged).items()}


def _scores(judged: Artifact) -> dict[str, dict[int, float]]:
    scores: dict[str, dict[int, float]] = defaultdict(dict)
    for row in rows_of(judged.tables(RECORDS)):
        scores[row["prompt_id"]][row["sample"]] = row["score"]
    return scores


def by_scores(policy: Side, baseline: Side) -> Comparison | None:
    """Every sample of the one against every sample of the other; None where they have no judged prompt in common."""
    assert policy.scores is not None
    assert baseline.scores is not None
    both = policy.scores.keys() & baseline.scores.keys()  # a template or a judge may have refused some on a side
    if not both:
        return None
    ours, theirs = (
        {prompt: [*scores[prompt].values()] for prompt in both} for scores in (policy.scores, baseline.scores)
    )
    found = shares(ours, theirs)
    return Comparison(found.prompts, found.wins, found.ties, found.losses, found.win_rates)


def by_verdicts(verdicts: Artifact) -> Comparison | None:
    """What a judge that compares said of each sample against the other policy's; None where it said nothing."""
    by_prompt = preferences(verdicts)
    if not by_prompt:
        return None
    prompts = tuple(sorted(by_prompt))
    said = [np.array([*by_prompt[prompt].values()]) for prompt in prompts]
    wins, ties, losses = (
        np.array([(np.sign(each - 0.5) == sign).mean() for each in said], dtype=np.float64) for sign in (1, 0, -1)
    )
    return Comparison(prompts, wins, ties, losses, np.array([each.mean() for each in said]))


def preferences(verdicts: Artifact) -> dict[str, dict[tuple[int, int], float]]:
    """By prompt and the two samples' numbers."""
    found: dict[str, dict[tuple[int, int], float]] = defaultdict(dict)
    for row in rows_of(verdicts.tables(VERDICT_RECORDS)):
        found[row["prompt_id"]][row["first"], row["second"]] = row["preference"]
    return found


def tasks(answers: Mapping[str, Sequence[Rollout]], field: str) -> dict[str, str]:
    """The task of each prompt, as a field of its row names it; prompts without one are left out."""
    found = {}
    for prompt, samples in answers.items():
        metadata = json.loads(samples[0].metadata or "{}")
        if isinstance(named := metadata.get(field), str | int) and str(named).strip():
            found[prompt] = str(named)
    return found
