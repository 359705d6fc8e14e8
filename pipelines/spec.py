"""The spec: one YAML file, as frozen models. What a key means stands beside it here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, ValidationInfo

from stages.base import Config, Resources, TrainResources
from stages.catalog import JudgeConfig, PairConfig, PromoteConfig, RolloutConfig, Share, TrainConfig, Truncation


def _existing(value: Path, info: ValidationInfo) -> Path:
    """Paths in a spec are relative to the spec's folder."""
    try:
        path = Path((info.context or {}).get("base", ".")) / value.expanduser()
        if not path.exists():
            raise ValueError(f"no such file: {path}")
        if not path.is_file():
            raise ValueError(f"not a file: {path}")
        return path.resolve()
    except (OSError, RuntimeError) as error:  # too long a name, no such user
        raise ValueError(f"not a usable path: {error}") from None


ExistingFile = Annotated[Path, AfterValidator(_existing)]
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
Origin = Literal["base", "previous"]


class ModelSource(Config):
    """Where the base model comes from.

    ``model`` is a folder in Hugging Face format, ``pkg://package/file.gguf`` (a GGUF file inside an installed
    package), or a hub id with a ``revision`` (a commit, or a tag or branch, which is resolved to its commit).
    ``adapter`` is a folder in PEFT format that is merged into the model before anything else.
    """

    model: Annotated[str, Field(min_length=1)]
    revision: str | None = None
    adapter: Annotated[str, Field(min_length=1)] | None = None


class PromptFiles(Config):
    """JSONL files of ``{"prompt": text or messages}``. ``heldout`` is never trained on."""

    train: ExistingFile | None = None
    heldout: ExistingFile | None = None


class IterateSpec(Config):
    """How one round builds on the others."""

    initial: Origin = "previous"
    """The policy that a round's training starts from: the base model, or the last promoted policy."""
    reference: Origin = "previous"
    """The reference model of a round's training, likewise."""
    replay: Share = 0.0
    """Share of all earlier pairs that a round trains on besides its own."""


class PrepareSpec(Config):
    max_length: PositiveInt = 1024
    """Tokens of prompt and response together."""
    truncation: Truncation = "drop"
    """Longer pairs go to quarantine (``drop``), are cut at the end (``keep_start``), or lose the beginning of their
    prompt (``keep_end``)."""


class EvaluateSpec(Config):
    """Held-out prompts are answered by the new policy and by a baseline; the judge compares."""

    samples: PositiveInt = 2
    against: Origin = "base"
    promote_if: PromoteConfig | None = None
    """A policy that misses a bound is kept, but the next round goes on from the last promoted one."""


class ResourcesSpec(Config):
    """Workers, CPUs and GPUs of the stages that take long. Changing them never re-runs a stage."""

    reference: Resources = Resources()
    train: TrainResources = TrainResources()
    rollout: Resources = Resources()


class PipelineSpec(Config):
    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    policy: ModelSource
    prompts: PromptFiles = PromptFiles()
    preferences: tuple[ExistingFile, ...] = ()
    """JSONL files of ``{"prompt", "chosen", "rejected"}`` to begin with."""
    rounds: PositiveInt = 1
    iterate: IterateSpec = IterateSpec()
    rollout: RolloutConfig = RolloutConfig()
    judge: JudgeConfig | None = None
    pair: PairConfig = PairConfig()
    prepare: PrepareSpec = PrepareSpec()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateSpec = EvaluateSpec()
    resources: ResourcesSpec = ResourcesSpec()
    seed: NonNegativeInt = 0
    """Added to the seeds of rollout and training; another seed is another run."""


def explain_type(kind: str, context: dict[str, Any]) -> str | None:
    """A plainer sentence for pydantic's commonest complaints, or None."""
    if kind == "string_pattern_mismatch" and "a-z0-9-" in str(context.get("pattern", "")):
        return "use lower-case letters, digits and hyphens (at most 63, no hyphen at either end)"
    return None
