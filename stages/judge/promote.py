"""The gate: the new policy becomes the champion if it kept every bound; otherwise the old one stays."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stages.base import Summary
from stages.io.artifact import Artifact
from stages.io.context import StageContext
from stages.judge.config import PromoteConfig


@dataclass(frozen=True)
class Bound:
    """A bound and what was measured; None where that could not be."""

    name: str
    limit: float
    measured: float | None
    least: bool
    """Whether the limit is the least that is allowed, or the most."""

    @property
    def miss(self) -> str | None:
        """How it was missed, as a sentence. What was not measured is a miss: a gate does not open by silence."""
        if self.measured is None or not math.isfinite(self.measured):
            return (
                f"{self.name} was not measured, and has to be {'at least' if self.least else 'at most'} {self.limit:g}"
            )
        if (self.measured < self.limit) if self.least else (self.measured > self.limit):
            return f"{self.name} is {self.measured:.3f}, {'below' if self.least else 'above'} {self.limit:g}"
        return None


def run(config: PromoteConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Make a policy artifact of the winner's files: it names them, none is copied. The summary has the decision, the
    evidence and the fingerprints of both."""
    found = list(bounds(config, inputs["evaluation"].summary))
    misses = [bound.miss for bound in found if bound.miss]
    winner = inputs["champion" if misses else "candidate"]
    context.output.parts.extend(winner.parts)
    return {
        "promoted": not misses,
        "misses": misses,
        "policy": winner.fingerprint,
        "candidate": inputs["candidate"].fingerprint,
        "champion": inputs["champion"].fingerprint,
        "evidence": {bound.name: {"limit": bound.limit, "measured": bound.measured} for bound in found},
    }


def bounds(config: PromoteConfig, evaluation: Mapping[str, Any]) -> Iterator[Bound]:
    """The bounds that are set, with what an evaluation's summary says of them."""
    first: Mapping[str, Any] = evaluation["against"][evaluation["baseline"]]
    for name, rate in (("win_rate", first["win_rate"]), ("length_controlled", first.get("length_controlled") or {})):
        for suffix, value in (("", rate.get("mean")), ("_low", rate.get("low"))):
            if (limit := getattr(config, name + suffix)) is not None:
                yield Bound(name + suffix, limit, value, least=True)
    if config.max_kl is not None:
        yield Bound("kl", config.max_kl, evaluation.get("kl", {}).get("mean"), least=False)
    if config.max_length_ratio is not None:
        yield Bound("length_ratio", config.max_length_ratio, first.get("length_ratio"), least=False)
    if config.min_agreement is not None:
        yield Bound("agreement", config.min_agreement, first.get("agreement"), least=True)
    for task, limit in config.max_regression.items():
        yield Bound(f"regression on {task}", limit, _regression(first.get("tasks", {}).get(task)), least=False)
    if config.max_check_regression is not None:
        change = evaluation.get("checks", {}).get("change")
        yield Bound("regression on checks", config.max_check_regression, -change["mean"] if change else None, False)


def _regression(task: Mapping[str, Any] | None) -> float | None:
    """How much a task has become worse; below 0 if it has become better."""
    if task is None:
        return None
    return -float(task["change"]["mean"]) if "change" in task else 0.5 - float(task["win_rate"]["mean"])
