"""The steps that judge answers, as a spec's judge says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.plan.base_model import base_step
from pipelines.plan.steps import Step
from pipelines.spec.models import PipelineSpec
from stages.base import Resources
from stages.catalog import COMPARE, JUDGE
from stages.judge.config import JudgeStageConfig
from stages.judge.judges.config import JudgeConfig, models_of
from stages.judge.judges.rewards.config import RewardModelJudge


@dataclass(frozen=True)
class Judging:
    """A judge with its place in plans."""

    config: JudgeStageConfig
    models: Mapping[str, Step]
    """The judge's own models, if it has any."""
    resources: Resources
    checks: Judging | None = None
    """The judge of ``evaluate.checks``."""

    @property
    def compares(self) -> bool:
        return self.config.judge.compares

    def scored(self, key: str, rollouts: Step) -> Step:
        """A score for each answer."""
        return Step(key, JUDGE, self.config, self._inputs({"rollouts": rollouts}), self.resources)

    def compared(self, key: str, rollouts: Step, against: Step) -> Step:
        """Verdicts on the answers of two policies to the same prompts."""
        inputs = {"rollouts": rollouts, "against": against}
        return Step(key, COMPARE, self.config, self._inputs(inputs), self.resources)

    def _inputs(self, inputs: dict[str, Step]) -> dict[str, Step]:
        return {**inputs, **self.models}


def judging(spec: PipelineSpec, folder: Path, trained: Step | None = None) -> Judging | None:
    """How a spec judges; None where it does not. ``trained`` is the reward model that it trains."""
    if spec.judge is None:
        return None
    checks = spec.evaluate.checks
    of_checks = _judging(spec, checks.judge or spec.judge, folder, "checks-judge", trained) if checks else None
    return replace(_judging(spec, spec.judge, folder, "judge", trained), checks=of_checks)


def _judging(spec: PipelineSpec, judge: JudgeConfig, folder: Path, key: str, trained: Step | None) -> Judging:
    config = JudgeStageConfig(judge=judge, max_bad_share=spec.data.max_bad_share)
    models = {name: base_step(source, folder, f"{key}/{name}") for name, source in models_of(judge).items()}
    if trained is not None and isinstance(judge, RewardModelJudge) and judge.model == "reward":
        models["model"] = trained
    return Judging(config, models, spec.resources.judge)
