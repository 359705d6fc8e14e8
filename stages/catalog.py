"""Every stage with its configuration. Imports neither Ray nor torch, so that a plan can be made in a moment."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    ValidationInfo,
    field_validator,
)

from stages.adapter_types import PROMPT_LEARNING, TYPES, unknown_type
from stages.base import Config, Plugin, Stage, plain
from stages.objectives import ConstraintConfig, Divergence, KlDivergence, Losses, PairwiseLoss
from stages.sources import CurateConfig, FormatConfig, QualityConfig

Share = Annotated[float, Field(ge=0, le=1)]
Precision = Literal["bf16", "fp32"]
Quantization = Literal["4bit", "8bit"]
Layout = Literal["auto", "shared", "packed", "padded"]
"""How pairs lie in a forward pass (``stages.core.packing``); ``auto`` is the best that the model can be run in."""


class MaterialiseConfig(Config):
    """A model from the hub; for local sources the model is the step's input and this stays empty."""

    hub: str | None = None
    revision: str | None = None


class IngestConfig(FormatConfig):
    kind: Literal["pairs", "prompts"]


Truncation = Literal["drop", "keep_start", "keep_end"]


class EncodeConfig(Config):
    max_length: PositiveInt = 1024
    """Tokens of prompt and response together."""
    truncation: Truncation = "drop"
    """What becomes of longer pairs (``stages.core.truncation``)."""


class PrepareConfig(Config):
    shard_rows: PositiveInt = 2048
    preferences: Share = 1.0
    """Share of the selected pairs that is taken."""
    replay: Share = 0.0
    """Share of the pairs under ``replay`` that is added to the others."""
    heldout: bool = False
    """Take the held-out rows of the selection instead of the others."""


class ReferenceConfig(Config):
    precision: Precision = "bf16"
    layout: Layout = "auto"
    mismatched: bool = False
    """Also score every prompt with another prompt's answer, which ``kto`` estimates the divergence from."""
    quantization: Quantization | None = None


class LoraConfig(Config):
    rank: PositiveInt = 16
    alpha: PositiveFloat | None = None
    """Scale of the update, alpha / rank; by default alpha is twice the rank."""
    dropout: Share = 0.0
    target_modules: tuple[str, ...] | None = None
    """Names of the modules to adapt; by default peft's choice for the architecture, else all linear layers but the
    head."""
    dora: bool = False
    """Train the direction and the length of each column of a weight apart (DoRA, arXiv:2402.09353)."""
    rslora: bool = False
    """Scale the update by alpha / sqrt(rank) (rsLoRA, arXiv:2312.03732)."""


class TrainConfig(Config):
    """One DPO training. ``batch_size`` counts pairs an optimizer step, over all workers."""

    loss: Losses = (PairwiseLoss(use="sigmoid"),)
    """One loss or a weighted sum of several: names, mappings with options, or the user's own functions."""
    beta: PositiveFloat = 0.1
    """Strength of the pull towards the reference; what it means to each loss is in docs/losses.md."""
    length_normalise: bool = False
    """Divide each response's log-ratio by its tokens before the loss."""
    divergence: Divergence = KlDivergence(use="reverse_kl")
    """What measures the distance to the reference (f-DPO)."""
    sft_weight: NonNegativeFloat = 0.0
    """Weight of the preferred response's mean negative log-likelihood a token, added to the loss (RPO)."""
    wpo: bool = False
    """Weight each pair by how likely the policy is to write it (WPO)."""
    constraints: tuple[ConstraintConfig, ...] = ()
    """The user's own penalties, added to the loss."""
    learning_rate: PositiveFloat = 1e-6
    batch_size: PositiveInt = 32
    epochs: PositiveInt = 1
    warmup: Share = 0.1
    """Share of the steps in which the learning rate rises from zero."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    precision: Precision = "bf16"
    """Precision of the products; weights and log-probability sums are always float32."""
    layout: Layout = "auto"
    """How pairs are laid out. The results are the same but for rounding, so the reference is made in the same one."""
    lora: LoraConfig | None = None
    peft: dict[str, Any] | None = None
    """Another adapter: ``peft_type`` and peft's own settings of that type."""
    quantization: Quantization | None = None
    """Bits of the frozen base under a LoRA adapter, in training and in its reference (QLoRA, arXiv:2305.14314)."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    seed: NonNegativeInt = 0

    @field_validator("peft")
    @classmethod
    def _peft(cls, value: dict[str, Any] | None, info: ValidationInfo) -> dict[str, Any] | None:
        if value is None:
            return None
        if info.data.get("lora") is not None:
            raise ValueError("train.lora is given too; one adapter is trained: give one of the two")
        if "peft_type" not in value:
            raise ValueError(f"needs peft_type, one of {', '.join(TYPES)}; for example {{peft_type: IA3}}")
        if problem := unknown_type(value["peft_type"]):
            raise ValueError(problem)
        return plain(value)

    @property
    def prompt_learning(self) -> bool:
        """Whether it trains virtual tokens, which are not merged into the weights."""
        return self.peft is not None and self.peft["peft_type"] in PROMPT_LEARNING


class RolloutConfig(Config):
    samples: PositiveInt = 4
    temperature: NonNegativeFloat = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: PositiveInt = 256
    max_length: PositiveInt = 2048
    """Tokens of prompt and response together that the engine makes room for."""
    engine: Literal["auto", "vllm", "transformers"] = "auto"
    seed: NonNegativeInt = 0


def choose_engine(engine: str, prompt_learning: bool = False) -> str:
    """``auto`` is vLLM where it is installed and can serve the policy (it knows no virtual tokens), else transformers.
    Decided when a plan is made, so that the answers of one engine are never taken for the other's."""
    if engine != "auto":
        return engine
    return "vllm" if find_spec("vllm") and not prompt_learning else "transformers"


class SentimentJudge(Config):
    """Scores English text from -1 (negative) to 1 (positive)."""

    use: Literal["sentiment"]


class RulesJudge(Config):
    """Scores a response by the share of the given rules that it keeps, from 0 to 1."""

    use: Literal["rules"]
    min_words: PositiveInt | None = None
    max_words: PositiveInt | None = None
    must_contain: tuple[str, ...] = ()
    must_not_contain: tuple[str, ...] = ()
    pattern: str | None = None
    """Regular expression that has to match somewhere."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return value


class CustomJudge(Plugin):
    """The user's own judge: a class or factory called with ``options`` that returns a ``Judge``."""


BUILTIN_JUDGES = ("sentiment", "rules")


def _judge_tag(value: Any) -> str | None:
    use = value.get("use") if isinstance(value, dict) else getattr(value, "use", None)
    if use in BUILTIN_JUDGES:
        return str(use)
    return "custom" if isinstance(use, str) and ":" in use else None


JudgeConfig = Annotated[
    Annotated[SentimentJudge, Tag("sentiment")]
    | Annotated[RulesJudge, Tag("rules")]
    | Annotated[CustomJudge, Tag("custom")],
    Discriminator(
        _judge_tag,
        custom_error_type="unknown_judge",
        custom_error_message='unknown judge; valid: use: sentiment, use: rules, or your own as use: "module:Class"',
    ),
]


class JudgeStageConfig(Config):
    judge: JudgeConfig


class PairConfig(Config):
    strategy: Literal["best_vs_worst"] = "best_vs_worst"
    min_margin: NonNegativeFloat = 0.0
    """Smallest difference of scores that makes a pair; equal scores never do."""


class HeldoutConfig(Config):
    """How a policy's ranking of held-out pairs is measured."""

    objective: TrainConfig
    """The loss of the training, without what is not about the pairs themselves."""


def measured(train: TrainConfig) -> TrainConfig:
    """What of a training's objective is measured on held-out pairs: neither constraints nor weights by confidence."""
    kept = ("loss", "beta", "length_normalise", "divergence", "sft_weight")
    return TrainConfig(**{name: getattr(train, name) for name in kept})


class EvaluateConfig(Config):
    resamples: PositiveInt = 10_000
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    seed: NonNegativeInt = 0


class PromoteConfig(Config):
    """The gate: every bound that is set has to be reached (win rates from 0 to 1)."""

    win_rate: Share | None = None
    win_rate_low: Share | None = None
    """Lower end of the win rate's confidence interval."""


MATERIALISE = Stage("materialise", 1, MaterialiseConfig, ("source", "adapter"), "policy", "stages.materialise:run")
INGEST = Stage("ingest", 3, IngestConfig, ("files",), "records", "stages.ingest:run")
CURATE = Stage("curate", 1, CurateConfig, ("pairs", "heldout"), "selection", "stages.curate:run")
ENCODE = Stage("encode", 1, EncodeConfig, ("policy", "pairs"), "tokens", "stages.encode:run")
PREPARE = Stage(
    "prepare", 2, PrepareConfig, ("selection", "selected", "pairs", "replay"), "shards", "stages.prepare:run"
)
REFERENCE = Stage("reference", 2, ReferenceConfig, ("policy", "shards"), "logprobs", "stages.reference:run")
TRAIN = Stage("train", 2, TrainConfig, ("policy", "shards", "reference"), "policy", "stages.train:run")
ROLLOUT = Stage("rollout", 1, RolloutConfig, ("policy", "adapter_base", "prompts"), "rollouts", "stages.rollout:run")
JUDGE = Stage("judge", 1, JudgeStageConfig, ("rollouts",), "judgements", "stages.judge:run")
PAIR = Stage("pair", 2, PairConfig, ("rollouts", "judgements"), "pairs", "stages.pair:run")
HELDOUT = Stage("heldout", 1, HeldoutConfig, ("shards", "policy", "reference"), "metrics", "stages.heldout:run")
EVALUATE = Stage("evaluate", 1, EvaluateConfig, ("policy", "baseline"), "evaluation", "stages.evaluate:run")
PROMOTE = Stage("promote", 1, PromoteConfig, ("candidate", "champion", "evaluation"), "policy", "stages.promote:run")
QUALITY = Stage("quality", 1, QualityConfig, ("pairs", "heldout", "policy"), "report", "stages.quality.stage:run")

STAGES: tuple[Stage[Any], ...] = (
    MATERIALISE, INGEST, CURATE, ENCODE, PREPARE, REFERENCE, TRAIN, ROLLOUT, JUDGE, PAIR, HELDOUT, EVALUATE, PROMOTE,
    QUALITY,
)  # fmt: skip
