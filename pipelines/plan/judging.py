"""The steps that judge answers, as a spec's judges say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.plan.base_model import base_step
from pipelines.plan.steps import Step
from pipelines.spec.models import PipelineSpec
from stages.base import Resources
from stages.catalog import COMPARE, JUDGE, REVISE, VOTE
from stages.judge.config import JudgeStageConfig, VoteConfig
from stages.judge.judges.config import EnsembleJudge, JudgeConfig, SingleJudge, models_of
from stages.judge.judges.rewards.config import ImplicitReward, RewardModelJudge
from stages.policy.config import ModelSource


@dataclass(frozen=True)
class Single:
    """A judge with its place in plans."""

    config: JudgeStageConfig
    models: Mapping[str, Step]
    """The judge's own models, if it has any."""
    resources: Resources

    @property
    def compares(self) -> bool:
        return self.config.judge.compares

    def scored(self, key: str, rollouts: Step) -> Step:
        """A score for each answer."""
        return Step(key, JUDGE, self.config, {"rollouts": rollouts, **self.models}, self.resources)

    def compared(self, key: str, rollouts: Step, against: Step) -> Step:
        """Verdicts on the answers of two policies to the same prompts."""
        inputs = {"rollouts": rollouts, "against": against, **self.models}
        return Step(key, COMPARE, self.config, inputs, self.resources)


@dataclass(frozen=True)
class Ensemble:
    """Judges that vote: what each says is a step of its own."""

    members: tuple[Single, ...]
    config: VoteConfig
    compares: bool = True

    def scored(self, key: str, rollouts: Step) -> Step:
        """As ``Single.scored``."""
        judged = {f"judged.{n}": each.scored(f"{key}-{n}", rollouts) for n, each in enumerate(self.members)}
        return Step(key, VOTE, self.config, judged)

    def compared(self, key: str, rollouts: Step, against: Step) -> Step:
        """As ``Single.compared``."""
        inputs = {}
        for n, each in enumerate(self.members):
            if each.compares:
                inputs[f"verdicts.{n}"] = each.compared(f"{key}-{n}", rollouts, against)
            else:
                inputs[f"judged.{n}"] = each.scored(f"{key}-{n}", rollouts)
                inputs[f"against.{n}"] = each.scored(f"{key}-{n}-against", against)
        return Step(key, VOTE, self.config, inputs)


@dataclass(frozen=True)
class Judging:
    """How a spec judges."""

    judge: Single | Ensemble | None
    checks: Single | Ensemble | None
    """The judge of ``evaluate.checks``."""
    revises: Step | None
    """The model that revises answers, if that is one of the plan's."""
    others: Mapping[str, Step]
    """Models beside the run's own policies that evaluations compare with, by name."""


def judging(spec: PipelineSpec, folder: Path, trained: Step | None = None) -> Judging:
    """How a spec judges. ``trained`` is the reward model that it trains."""
    checks = spec.evaluate.checks
    of_checks = _judge(spec, checks.judge or spec.judge, folder, "checks-judge", trained) if checks else None
    source = spec.revise.model if spec.revise else None
    revises = base_step(source, folder, "revise/model") if source is not None else None
    pairs = zip(spec.evaluate.baselines, spec.evaluate.against, strict=True)
    named = {name: each for name, each in pairs if not isinstance(each, str)}
    others = {name: base_step(each, folder, f"against/{name}") for name, each in named.items()}
    return Judging(_judge(spec, spec.judge, folder, "judge", trained), of_checks, revises, others)


def revised(spec: PipelineSpec, how: Judging, key: str, rollouts: Step) -> Step | None:
    """Pairs of revised answers and the originals, if a spec asks for such."""
    if spec.revise is None:
        return None
    inputs = {"rollouts": rollouts, **({"model": how.revises} if how.revises else {})}
    return Step(key, REVISE, spec.revise, inputs, spec.resources.judge)


def log_ratios(spec: PipelineSpec, key: str, rollouts: Step, policy: Step, reference: Step) -> Step:
    """log pi - log ref of a policy's answers: the reward that is implicit in it, at beta 1. Their mean is its KL."""
    own = ModelSource(model="policy")  # both models are the plan's, and no part of the configuration's identity
    judge = ImplicitReward(use="implicit_reward", beta=1.0, model=own, reference=own)
    config = JudgeStageConfig(judge=judge, max_bad_share=spec.data.max_bad_share)
    return Single(config, {"model": policy, "reference": reference}, spec.resources.judge).scored(key, rollouts)


def judge_of(
    judge: JudgeConfig, max_bad_share: float, resources: Resources, folder: Path, key: str, trained: Step | None = None
) -> Single | Ensemble:
    """A judge with the models that it names; relative paths are relative to ``folder``."""
    if isinstance(judge, EnsembleJudge):
        every = enumerate(judge.judges)
        members = [_single(each, max_bad_share, resources, folder, f"{key}-{n}", trained) for n, each in every]
        return Ensemble(tuple(members), VoteConfig(margin=judge.margin))
    return _single(judge, max_bad_share, resources, folder, key, trained)


def _judge(
    spec: PipelineSpec, judge: JudgeConfig | None, folder: Path, key: str, trained: Step | None
) -> Single | Ensemble | None:
    if judge is None:
        return None
    return judge_of(judge, spec.data.max_bad_share, spec.resources.judge, folder, key, trained)


def _single(
    judge: SingleJudge, max_bad_share: float, resources: Resources, folder: Path, key: str, trained: Step | None
) -> Single:
    models = {name: base_step(source, folder, f"{key}/{name}") for name, source in models_of(judge).items()}
    if trained is not None and isinstance(judge, RewardModelJudge) and judge.model == "reward":
        models["model"] = trained
    return Single(JudgeStageConfig(judge=judge, max_bad_share=max_bad_share), models, resources)
