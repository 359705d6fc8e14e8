"""Length-controlled win rate: what the win rate would be if both sides' answers were equally long.

Dubois, Galambosi, Liang and Hashimoto 2024, "Length-Controlled AlpacaEval", arXiv:2404.04475, section 3. A logistic
regression explains the preference for the policy on prompt x by

    logit q(x) = model + length * tanh(d(x) / s) + difficulty * g(x),

with d(x) the difference of the answers' lengths in characters (policy - baseline), s the standard deviation of d and
g(x) how hard the prompt is, known beforehand. The length-controlled win rate is the mean over prompts of q(x) with
the length term left out. The policy against itself has 0.5, and swapping the sides gives 1 - it.

AlpacaEval 2 fits by an L1 penalty whose strength is cross-validated, and adds two further sets of comparisons (of its
baseline told to be brief, and to be long) with a small weight. Here the penalty is a small fixed ridge: it has hardly
any effect where the data decide, and keeps every number finite where they do not (docs/evaluation.md has measured
differences).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from stages.core.bootstrap import Floats, Interval, statistic
from stages.core.evaluation.logistic import fit

RIDGE = 0.01
"""Penalty (RIDGE / 2) |w|^2 on the sum of log losses over prompts: ten wins of ten give 0.995, and the fit ends."""


@dataclass(frozen=True)
class LengthControlled:
    """``win_rate`` is length-controlled, ``raw`` is not; ``prompts`` is q(x) without the length term, (prompts,).

    ``length`` > 0 means that the judge prefers the longer answer, all else equal. ``difficulty`` is 0 without g.
    """

    win_rate: Interval
    raw: float
    model: float
    length: float
    difficulty: float
    prompts: Floats


def length_controlled(
    preference: Sequence[float] | Floats,
    policy_length: Sequence[float] | Floats,
    baseline_length: Sequence[float] | Floats,
    difficulty: Sequence[float] | Floats | None = None,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    ridge: float = RIDGE,
) -> LengthControlled:
    """The length-controlled win rate with its bootstrap interval over prompts.

    The regression is fitted anew on every resample; s stays that of the data.

    Args:
        preference: (prompts,) of [0, 1]: the policy's share of wins on a prompt, a tie being half a win.
        policy_length, baseline_length: (prompts,): lengths, or mean lengths of a prompt's answers; AlpacaEval counts
            characters.
        difficulty: (prompts,): g(x), higher where any policy does better against the baseline. None leaves the term
            out: then q is the same on every prompt, and with no effect of length the result is the plain win rate.
            Where lengths differ a lot this is less reliable (docs/evaluation.md has both, measured). It must not come
            from the preferences passed here, of which it would be a copy; ``difficulty_of`` estimates it from other
            comparisons with the same baseline on the same prompts.
        resamples, confidence, seed: of the interval. ridge: the penalty, see ``RIDGE``.

    Raises:
        ValueError: shapes differ, there is no prompt, a number is not finite, or a preference is outside [0, 1].
    """
    wins, ours, theirs = (np.asarray(x, dtype=np.float64) for x in (preference, policy_length, baseline_length))
    hard = None if difficulty is None else np.asarray(difficulty, dtype=np.float64)
    _check(wins, ours, theirs, *([] if hard is None else [hard]))
    design = _design(ours - theirs, hard)
    without = design.copy()
    without[:, 1] = 0.0
    start = fit(design, wins, np.ones((1, len(wins))), ridge)

    def compute(weights: Floats) -> Floats:
        predicted = expit(fit(design, wins, weights, ridge, start[0]) @ without.T)
        return np.asarray((weights * predicted).sum(axis=1) / weights.sum(axis=1), dtype=np.float64)

    return LengthControlled(
        win_rate=statistic(compute, len(wins), resamples, confidence, seed),
        raw=float(wins.mean()),
        model=float(start[0, 0]),
        length=float(start[0, 1]),
        difficulty=0.0 if hard is None else float(start[0, 2]),
        prompts=expit(without @ start[0]),
    )


def lengths_overlap(policy_length: Sequence[float] | Floats, baseline_length: Sequence[float] | Floats) -> bool:
    """Whether lengths can be controlled for: where all answers of one side are longer by about the same, (prompts,)
    each, the length term is as constant as the model's own, and no regression can tell them apart."""
    apart = np.asarray(policy_length, dtype=np.float64) - np.asarray(baseline_length, dtype=np.float64)
    spread = float(apart.std())
    if not spread:
        return not apart.any()
    term = np.tanh(apart / spread)
    return bool(term.std() >= _LEAST_SPREAD or abs(term.mean()) < _LEAST_SPREAD)


_LEAST_SPREAD = 0.1
"""Standard deviation of tanh(d / s), which is at most 1."""


def difficulty_of(
    preferences: Sequence[Sequence[float]] | Floats, length_differences: Sequence[Sequence[float]] | Floats
) -> Floats:
    """g(x) estimated from other policies' comparisons with the same baseline: (prompts,), with mean 0.

    Each policy has its own model and length term; the prompts' terms are shared and fitted jointly (arXiv:2404.04475,
    section 3.2), by turns: each policy's two terms given g, then each prompt's g given the policies'. A prompt's g has
    a standard normal prior, so few policies give small values; no policy at all would give zeros.

    Args:
        preferences: (policies, prompts) of [0, 1].
        length_differences: (policies, prompts): policy - baseline.

    Raises:
        ValueError: as ``length_controlled``.
    """
    wins, differences = (np.asarray(x, dtype=np.float64) for x in (preferences, length_differences))
    _check(wins, differences)
    policies, prompts = wins.shape
    ones = np.ones((1, prompts))
    hard = np.zeros(prompts)
    designs = [_design(row, None) for row in differences]
    for _ in range(_TURNS):
        offsets = np.empty((policies, prompts))
        for number, design in enumerate(designs):
            offsets[number] = design @ fit(design, wins[number], ones, RIDGE, offset=hard)[0]
        before, hard = hard, _prompt_terms(wins, offsets)
        if np.abs(hard - before).max() < 1e-4:
            break
    centred: Floats = hard - hard.mean()
    return centred


_TURNS = 50


def _prompt_terms(wins: Floats, offsets: Floats) -> Floats:
    """Per prompt the term g that fits best given the policies' terms, (policies, prompts), under a prior N(0, 1)."""
    hard: Floats = np.zeros(wins.shape[1])
    for _ in range(50):
        likely = expit(offsets + hard)
        slope = (likely - wins).sum(axis=0) + hard
        step = np.clip(slope / ((likely * (1 - likely)).sum(axis=0) + 1.0), -1.0, 1.0)
        hard = hard - step
        if np.abs(step).max() < 1e-8:
            break
    return hard


def _design(differences: Floats, hard: Floats | None) -> Floats:
    """Columns (1, tanh(d / s), g), (prompts, 2 or 3). Without spread every d / s counts as 0: there is nothing to
    learn about lengths from lengths that all differ alike."""
    spread = float(np.std(differences, ddof=1)) if len(differences) > 1 else 0.0
    scaled = differences / spread if spread > 1e-9 * (1.0 + np.abs(differences).max()) else np.zeros(len(differences))
    columns = [np.ones(len(differences)), np.tanh(scaled)]
    return np.stack(columns if hard is None else [*columns, hard], axis=1)


def _check(wins: Floats, *others: Floats) -> None:
    if not wins.size or any(other.shape != wins.shape for other in others):
        raise ValueError("length control needs the same prompts, at least one, in every argument")
    if not all(np.isfinite(values).all() for values in (wins, *others)):
        raise ValueError("length control needs finite numbers")
    if wins.min() < 0 or wins.max() > 1:
        raise ValueError("a preference is a share of wins, from 0 to 1")
