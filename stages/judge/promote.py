"""The gate: the new policy becomes the champion if it reached every bound; otherwise the old one stays."""

from __future__ import annotations

from collections.abc import Mapping

from stages.base import Summary
from stages.io.artifact import Artifact
from stages.io.context import StageContext
from stages.judge.config import PromoteConfig


def run(config: PromoteConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Make a policy artifact of the winner's files: it names them, none is copied."""
    win_rate = inputs["evaluation"].summary["win_rate"]
    misses = missed(config, win_rate)
    winner = inputs["champion" if misses else "candidate"]
    context.output.parts.extend(winner.parts)
    return {"promoted": not misses, "misses": misses, "policy": winner.fingerprint}


def missed(config: PromoteConfig, win_rate: Mapping[str, float]) -> list[str]:
    """The bounds that the measured win rate does not reach, as sentences."""
    measured = {"win_rate": win_rate["mean"], "win_rate_low": win_rate["low"]}
    bounds = {name: getattr(config, name) for name in measured}
    return [
        f"{name} is {measured[name]:.3f}, below {bound}"
        for name, bound in bounds.items()
        if bound is not None and measured[name] < bound
    ]
