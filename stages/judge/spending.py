"""What the parts of a step have spent on judging, before it was killed and after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.io.artifact import Artifact
from stages.io.context import StageContext
from stages.judge.judges.means import Means

SPENT = ("input_tokens", "output_tokens", "cost", "seconds")
"""What every reply of a judge names."""


def means(inputs: Mapping[str, Artifact], context: StageContext) -> Means:
    """What a step's judge may use. Parts whose questions may be answered now are made again."""
    ask_again(context)
    return Means(context.output, inputs.get("model"), inputs.get("reference"), context.resources.gpus)


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
