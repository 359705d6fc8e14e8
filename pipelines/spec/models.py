"""The spec: one YAML file, as frozen models. Each key is explained here, next to its definition."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, NonNegativeInt, PositiveInt, Tag, field_validator

from stages.base import Config, Resources, RolloutResources, Share, TrainResources, plain
from stages.core.formats.config import FormatConfig
from stages.core.tokens.config import Truncation
from stages.data.config import FilterConfig, LabelsConfig, MixConfig
from stages.generate.config import RolloutConfig
from stages.judge.config import PairConfig, PromoteConfig
from stages.judge.judges.config import JudgeConfig
from stages.judge.judges.llm.config import ReviseConfig
from stages.policy.config import ModelSource
from stages.train.config import RewardConfig, TrainConfig
from stages.tune.config import SweepConfig

Location = Annotated[str, Field(min_length=1)]
"""A file, folder or glob, relative to the spec's folder, or an address (s3://, gs://, hf://)."""
NAME = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
"""What a pipeline may be called."""
CHAMPION = "champion://"
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
Origin = Literal["base", "previous"]


class ChampionSource(ModelSource):
    """A champion that was looked up in the store; ``model`` says which it was."""

    made: Annotated[tuple[str, str], Field(exclude=True)]
    """Where its artifact is (``artifacts/<fingerprint>/<inputs>``)."""
    folder: Annotated[Path, Field(exclude=True)]
    """Its model on this machine; of a store that is a bucket without the weights."""


class PromptFiles(Config):
    """Files of prompts, in any container allowed for preferences. ``heldout`` is never trained on."""

    train: Location | None = None
    heldout: Location | None = None


class SourceSpec(FormatConfig, MixConfig):
    """Files of preferences, how to read them, and their place in the mixture."""

    path: Location


def _source(value: Any) -> Any:
    """A path alone is a source with all defaults."""
    return {"path": value} if isinstance(value, str) else value


class DataSpec(Config):
    """What happens to all given preferences before training."""

    heldout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the prompts whose pairs are not trained on, but measured after every round."""
    max_bad_share: Share = 0.2
    """The run fails when a larger share of a source's rows cannot be used."""
    labels: LabelsConfig = LabelsConfig()
    filters: FilterConfig = FilterConfig()


class IterateSpec(Config):
    """How one round builds on the others."""

    initial: Origin = "previous"
    """The policy that a round's training starts from: the base model, or the last promoted policy."""
    reference: Origin = "previous"
    """The reference model of a round's training, likewise."""
    replay: Share = 0.0
    """Share of all earlier pairs that a round trains on in addition to its own."""
    train: dict[PositiveInt, dict[str, Any]] = Field(default_factory=dict)
    """Settings of the training that change from a round on, as in ``{3: {beta: 0.2, lora.rank: 8}}``."""

    @field_validator("train")
    @classmethod
    def _plain(cls, value: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
        for settings in value.values():
            plain(settings)
        return value


class PrepareSpec(Config):
    max_length: PositiveInt = 1024
    """Tokens of prompt and response together."""
    truncation: Truncation = "drop"
    """Longer pairs go to quarantine (``drop``), are cut at the end (``keep_start``), or lose the beginning of their
    prompt (``keep_end``)."""


def _listed(value: Any) -> Any:
    """One alone, or a list, in which each counts once."""
    if not isinstance(value, list | tuple):
        return [value]
    return [each for number, each in enumerate(value) if each not in value[:number]]


Baseline = Annotated[
    Annotated[Origin, Tag("origin")] | Annotated[ModelSource, Tag("model")],
    Discriminator(lambda value: "origin" if isinstance(value, str) else "model"),
]


class ChecksSpec(Config):
    """Prompts whose answers can be checked: the new policy is not to do worse on them."""

    prompts: Location
    judge: JudgeConfig | None = None
    """Scores the answers; by default the spec's ``judge``."""


class EvaluateSpec(Config):
    """Held-out prompts are answered by the new policy and by baselines; the judge compares."""

    samples: PositiveInt = 2
    against: Annotated[tuple[Baseline, ...], BeforeValidator(_listed)] = ("base",)
    """The base model, the last promoted policy, a model as ``policy`` names one (such as a champion), or a list of
    such; the gate looks at the first."""
    task: str | None = None
    """Field of the prompts' rows that names their task; then every task has figures of its own."""
    checks: ChecksSpec | None = None
    kl: bool = False
    """Whether the KL from the training's reference is estimated on the answers, which takes a pass of both models;
    always with a bound on it."""
    promote_if: PromoteConfig | None = None
    """A policy that misses a bound is kept, but the next round continues from the last promoted one."""

    @field_validator("against")
    @classmethod
    def _something(cls, value: tuple[Baseline, ...]) -> tuple[Baseline, ...]:
        if not value:
            raise ValueError("expected base, previous, a model, or a list of such, got an empty list")
        return value

    @property
    def baselines(self) -> tuple[str, ...]:
        """Their names: a model's is what the spec calls it, with what tells it from others of that name."""
        names: list[str] = []
        for each in self.against:
            name = each if isinstance(each, str) else " ".join(filter(None, (each.model, each.revision, each.adapter)))
            known = [*names, "base", "previous"] if not isinstance(each, str) else names
            names.append(f"{name} ({len(names) + 1})" if name in known else name)
        return tuple(names)


class ResourcesSpec(Config):
    """Workers, CPUs, GPUs and kinds of machine of the stages that take long. Changing them never re-runs a stage."""

    encode: Resources = Resources()
    """By default as many workers with a CPU each as there are CPUs and enough rows, likewise for ``prepare``."""
    prepare: Resources = Resources()
    reference: Resources = Resources()
    train: TrainResources = TrainResources()
    rollout: RolloutResources = RolloutResources()
    judge: Resources = Resources()
    """Also of what revises answers."""


class PipelineSpec(Config):
    name: Annotated[str, Field(pattern=NAME)]
    policy: ModelSource
    prompts: PromptFiles = PromptFiles()
    preferences: tuple[Annotated[SourceSpec, BeforeValidator(_source)], ...] = ()
    """Preference data to start with: paths, or mappings with a ``path`` (docs/data.md)."""
    data: DataSpec = DataSpec()
    rounds: PositiveInt = 1
    iterate: IterateSpec = IterateSpec()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig | None = None
    """Train a reward model from the policy on the given preferences; ``judge: {use: reward_model, model: reward}`` is
    it."""
    judge: JudgeConfig | None = None
    pair: PairConfig = PairConfig()
    revise: ReviseConfig | None = None
    """A language model that criticises answers and revises them: pairs of their own, beside the judged ones."""
    prepare: PrepareSpec = PrepareSpec()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateSpec = EvaluateSpec()
    sweep: SweepConfig | None = None
    """What ``rondo sweep`` varies; ``rondo run`` trains with the values under ``train``."""
    resources: ResourcesSpec = ResourcesSpec()
    seed: NonNegativeInt = 0
    """Added to the seeds of rollout and training; another seed is another run."""

    def places(self, sweep: bool = False) -> dict[str, Resources]:
        """What has to have a place on the machines, by key path; also a ``sweep``'s trials at the same time."""
        found: dict[str, Resources] = {f"resources.{name}": each for name, each in self.resources}
        if sweep and self.sweep is not None and self.sweep.parallel is not None:
            found["sweep.parallel"] = self.resources.train.times(self.sweep.parallel)
        return found


def train_of(train: TrainConfig, iterate: IterateSpec, number: int) -> TrainConfig:
    """The training of a round.

    Raises:
        ValidationError: a setting that changes does not exist, or does not take its value.
    """
    settings: dict[str, Any] = {}
    for first in sorted(first for first in iterate.train if first <= number):
        settings |= iterate.train[first]
    return train.changed(settings) if settings else train


def explain_type(kind: str, context: dict[str, Any]) -> str | None:
    """A plainer sentence for pydantic's most common complaints, or None."""
    if kind == "string_pattern_mismatch" and "a-z0-9-" in str(context.get("pattern", "")):
        return "use lower-case letters, digits and hyphens (at most 63, no hyphen at either end)"
    return None
