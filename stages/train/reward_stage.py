"""A reward model is trained on preferences, by the workers that train policies."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from stages.base import Summary, TrainResources
from stages.io import nodes
from stages.io.artifact import Artifact
from stages.io.board import board
from stages.io.context import StageContext
from stages.io.filenames import METRICS
from stages.train.arguments import POLICY, REWARDED, Arguments
from stages.train.config import RewardConfig
from stages.train.train import fit, summarise


def run(config: RewardConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Train; the artifact's only part has ``model``, which AutoModelForSequenceClassification loads, with the policy's
    tokenizer and chat template, and ``metrics.jsonl``. The summary has ``heldout`` if there are such pairs.

    Raises:
        StageError: as a policy's training; or the policy cannot become a reward model, or a row has only one response.
    """
    output, resources = context.output, context.resources
    assert isinstance(resources, TrainResources)
    if POLICY not in output.done():
        cpus = nodes.cpus_per_worker(resources, nodes.for_workers(resources))
        with board(context.progress) as progress:
            fit(Arguments(config, resources, cpus, dict(inputs), output, progress, tuple(sys.path)))
    part = output.done()[POLICY]
    output.parts.append(part)
    return summary(Artifact(output.store, output.fingerprint, "", (part,)))


def summary(made: Artifact) -> dict[str, Any]:
    """What a finished reward model says about its training."""
    rows = [json.loads(line) for line in made.path(METRICS).read_text(encoding="utf-8").splitlines()]
    proved: dict[str, Any] = json.loads(made.path(REWARDED).read_text(encoding="utf-8"))
    return {**summarise(rows), **proved}
