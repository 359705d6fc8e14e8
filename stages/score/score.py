"""The reference model's log-probabilities of every response, row by row those of the shards."""

from __future__ import annotations

from collections.abc import Mapping

from stages.base import Summary
from stages.io.artifact import Artifact
from stages.io.context import StageContext
from stages.io.filenames import SHARD
from stages.io.parts import run_parts, slices
from stages.score.config import ReferenceConfig

_SLICE = 256
"""Pairs of a part: what is scored again after a crash."""
_ONE_PROMPT = (
    "all pairs have the same prompt: there is no answer to another one from which kto could estimate its divergence "
    "(z0), so z0 stays 0"
)


def run(config: ReferenceConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Score all pairs in slices, one model per worker; a part has the ``logprobs.arrow`` of a slice.

    The summary has a ``note`` where no mismatched answer can belong to another prompt.
    """
    shards = inputs["shards"]
    total = sum(table.rows for table in shards.tables(SHARD))
    counts = run_parts(
        slices(total, _SLICE), "stages.score.scorer:Scorer", context, "pairs",
        config=config, policy=inputs["policy"], shards=shards,
    )  # fmt: skip
    alone = config.mismatched and not counts.get("mismatched")
    return {"pairs": total, **({"note": _ONE_PROMPT} if alone else {})}
