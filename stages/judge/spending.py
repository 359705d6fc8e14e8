"""What the parts of a step have spent on judging, before it was killed and after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.io.artifact import Artifact
from stages.io.context import StageContext
from stages.io.output import add_up
from stages.judge.judges.means import Means

SPENT = ("input_tokens", "output_tokens", "cost", "seconds")
"""What every reply of a judge names."""


def means(inputs: Mapping[str, Artifact], context: StageContext) -> Means:
    """What a step's judge may use; what its finished parts have paid is spent."""
    before = add_up(part.counts for part in context.output.done().values())
    return Means(
        context.output.store, context.output.fingerprint, before.get("paid_tokens", 0), before.get("paid_cost", 0.0),
        inputs.get("model"), context.resources.gpus, inputs.get("reference"),
    )  # fmt: skip


def spent(counts: Mapping[str, Any]) -> dict[str, Any]:
    """For a summary: what the replies took, and what of it this step has ``paid``."""
    found = {name: counts[name] for name in SPENT if counts[name]}
    if "paid_tokens" in counts:
        found["paid"] = {"tokens": counts["paid_tokens"], "cost": counts["paid_cost"]}
    return found


def ask_again(context: StageContext) -> None:
    """Parts with questions that may be answered the next time are made again then; replies are not paid twice."""
    for part in context.output.done().values():
        if part.counts.get("passing"):
            context.output.discard(part)
