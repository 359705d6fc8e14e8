"""How a policy does on held-out prompts: against baselines, by task, and what its answers have become."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from stages.base import StageError, Summary
from stages.core.bootstrap import Floats, Interval, bootstrap, paired_difference
from stages.core.evaluation import texts
from stages.core.evaluation.kl import divergence
from stages.core.evaluation.length_control import length_controlled, lengths_overlap
from stages.io.artifact import Artifact
from stages.io.context import StageContext
from stages.io.filenames import RECORDS, SIDE_BY_SIDE, WIN_RATES
from stages.io.tables import rows_of
from stages.judge.config import EvaluateConfig
from stages.judge.samples import side_by_side
from stages.judge.sides import Comparison, Side, by_scores, by_verdicts, mean_scores, side, tasks

_REFITS = 1000
"""Resamples of the length-controlled win rate, whose regression is fitted anew on each."""


def run(config: EvaluateConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Compare the answers of ``policy`` with those of each ``baseline.NAME``, prompt by prompt, by the scores that a
    judge gave (``judged``, ``baseline_judged.NAME``) or by its ``verdicts.NAME``; intervals are bootstrapped over
    prompts. Win rates, lengths and scores that stand at the top of the summary are those against the first baseline.

    Raises:
        StageError: a baseline has no prompt in common with the policy.
    """
    policy = side(inputs["policy"], inputs.get("judged"))
    names = [name.partition(".")[2] for name in inputs if name.startswith("baseline.")]
    against: dict[str, Any] = {}
    details: dict[str, dict[str, float]] = {}
    sides = {"policy": policy}
    for name in sorted(names, key=config.against.index):
        sides[name] = side(inputs[f"baseline.{name}"], inputs.get(f"baseline_judged.{name}"))
        verdicts = inputs.get(f"verdicts.{name}")
        compared = by_verdicts(verdicts) if verdicts is not None else by_scores(policy, sides[name])
        if compared is None:
            raise StageError(f"no prompt was answered and judged on both sides, of the new policy and of {name}")
        against[name] = _against(config, compared, policy, sides[name]) | _told(verdicts)
        details[name] = dict(zip(compared.prompts, map(float, compared.rates), strict=True))
    first = config.against[0]
    with context.output.part("evaluation") as part:
        (part.folder / WIN_RATES).write_text(json.dumps(details, indent=2), encoding="utf-8")
        with (part.folder / SIDE_BY_SIDE).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in side_by_side(sides, details))
    return {
        "baseline": first,
        "win_rate": against[first]["win_rate"],
        "judge_score": policy.mean_score,
        "baseline_score": sides[first].mean_score,
        "against": against,
        "answers": {name: _answers(each) for name, each in sides.items()},
        **_checks(config, inputs),
        **_divergence(config, inputs, policy),
    }


def _told(verdicts: Artifact | None) -> dict[str, Any]:
    """What a judge that compares, or an ensemble, tells of itself."""
    told = {} if verdicts is None else {name: verdicts.summary.get(name) for name in ("agreement", "position")}
    return {name: value for name, value in told.items() if value is not None}


def _against(config: EvaluateConfig, compared: Comparison, policy: Side, baseline: Side) -> dict[str, Any]:
    """The figures of one baseline."""
    prompts = compared.prompts
    ours, theirs = policy.lengths(prompts), baseline.lengths(prompts)
    controlled = None
    if lengths_overlap(ours, theirs):
        controlled = length_controlled(
            compared.rates, ours, theirs, resamples=min(_REFITS, config.resamples), confidence=config.confidence,
            seed=config.seed,
        )  # fmt: skip
    found = {
        "win_rate": _rate(config, compared.rates),
        **{name: float(getattr(compared, name).mean()) for name in ("wins", "ties", "losses")},
        "length_controlled": asdict(controlled.win_rate) if controlled else None,
        "length_ratio": texts.growth(ours, theirs) if theirs.any() else None,
    }
    if config.task is not None:
        found["tasks"] = _by_task(config, compared, policy, baseline)
    return found


def _by_task(config: EvaluateConfig, compared: Comparison, policy: Side, baseline: Side) -> dict[str, Any]:
    """The win rate on each task's prompts and, if the judge gives scores, how they have changed."""
    assert config.task is not None
    named = tasks(policy.answers, config.task)
    scores = [each.prompt_scores(compared.prompts) for each in (policy, baseline)]
    found = {}
    for task in sorted(set(named.values())):
        chosen = np.array([named.get(prompt) == task for prompt in compared.prompts])
        if not chosen.any():
            continue
        row: dict[str, Any] = {"win_rate": _rate(config, compared.rates[chosen])}
        if scores[0] is not None and scores[1] is not None:
            ours, theirs = scores[0][chosen], scores[1][chosen]
            change = paired_difference(ours, theirs, config.resamples, config.confidence, config.seed)
            row |= {"score": float(ours.mean()), "baseline_score": float(theirs.mean()), "change": asdict(change)}
        found[task] = row
    return found


def _checks(config: EvaluateConfig, inputs: Mapping[str, Artifact]) -> dict[str, Any]:
    """How the scores of the prompts that are checked have changed from the first baseline's."""
    if "checked" not in inputs:
        return {}
    ours, theirs = (mean_scores(inputs[name]) for name in ("checked", "baseline_checked"))
    both = sorted(ours.keys() & theirs.keys())
    if not both:
        raise StageError("no prompt of evaluate.checks was answered and judged on both sides")
    new, old = ([each[prompt] for prompt in both] for each in (ours, theirs))
    change = paired_difference(new, old, config.resamples, config.confidence, config.seed)
    means = {"score": float(np.mean(new)), "baseline_score": float(np.mean(old))}
    return {"checks": {**means, "change": asdict(change), "prompts": len(both)}}


def _divergence(config: EvaluateConfig, inputs: Mapping[str, Artifact], policy: Side) -> dict[str, Any]:
    """KL(policy || reference) in nats, from the ``log_ratios`` of the policy's own answers."""
    if "log_ratios" not in inputs:
        return {}
    ratios = {(row["prompt_id"], row["sample"]): row["score"] for row in rows_of(inputs["log_ratios"].tables(RECORDS))}
    answers = [each for samples in policy.answers.values() for each in samples if each.tokens]
    known = [each for each in answers if (each.prompt_id, each.sample) in ratios]
    if not known:
        raise StageError("no answer of the policy has a log-probability; its KL cannot be estimated")
    found = divergence(
        [ratios[each.prompt_id, each.sample] for each in known], np.zeros(len(known)), [each.tokens for each in known],
        [each.prompt_id for each in known], resamples=config.resamples, confidence=config.confidence, seed=config.seed,
    )  # fmt: skip
    return {"kl": {**asdict(found.sequence), "per_token": asdict(found.token), "negative": found.negative}}


def _rate(config: EvaluateConfig, rates: Floats) -> dict[str, Any]:
    interval: Interval = bootstrap(rates, config.resamples, config.confidence, config.seed)
    return {**asdict(interval), "prompts": len(rates)}


def _answers(answered: Side) -> dict[str, float | None]:
    """What a side's answers are like as texts."""
    every = answered.texts(sorted(answered.answers))
    tokens = [each.tokens for samples in answered.answers.values() for each in samples]
    measured = {
        "samples": len(every),
        "tokens": float(np.mean(tokens)),
        "characters": float(texts.lengths(every).mean()),
        "distinct_1": texts.distinct(every, 1),
        "distinct_2": texts.distinct(every, 2),
        "repetition": float(np.mean([texts.repetition(each) for each in every])),
        "refusals": texts.refusals(every),
    }
    return {name: value if math.isfinite(value) else None for name, value in measured.items()}
