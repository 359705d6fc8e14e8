"""The reward model that a spec trains, as steps."""

from __future__ import annotations

from pipelines.plan.given import Preferences
from pipelines.plan.steps import Step
from pipelines.spec.models import PipelineSpec
from stages.catalog import PREPARE, TRAIN_REWARD
from stages.data.config import PrepareConfig


def reward_step(spec: PipelineSpec, base: Step, given: Preferences | None) -> Step | None:
    """The training of a spec's reward model from its base policy, on all its given preferences but those that are held
    out, which it is measured on; None where it trains none, or where there is nothing to train it on."""
    if spec.reward is None or given is None:
        return None
    own = PrepareConfig(source_of=given.source_of, max_bad_share=spec.data.max_bad_share)
    resources = spec.resources.prepare
    inputs = {"policy": base, "shards": Step("reward/prepare", PREPARE, own, given.inputs, resources)}
    if given.heldout:
        heldout = PrepareConfig(heldout=True)
        inputs["heldout"] = Step("preferences/heldout", PREPARE, heldout, given.inputs, resources)
    seeded = spec.reward.model_copy(update={"seed": spec.reward.seed + spec.seed})
    return Step("reward/train", TRAIN_REWARD, seeded, inputs, spec.resources.train)
