"""One training: configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, ValidationInfo, field_validator

from stages.base import Config, Share, plain
from stages.core.forward.config import LayoutChoice, Precision
from stages.core.losses.config import ObjectiveConfig
from stages.policy.config import PROMPT_LEARNING, TYPES, Quantization, unknown_type


class LoraConfig(Config):
    rank: PositiveInt = 16
    alpha: PositiveFloat | None = None
    """Scale of the update, alpha / rank; by default alpha is twice the rank."""
    dropout: Share = 0.0
    target_modules: tuple[str, ...] | None = None
    """Names of the modules to adapt; by default peft's choice for the architecture, else all linear layers but the
    head and routers."""
    dora: bool = False
    """Train the direction and the length of each column of a weight apart (DoRA, arXiv:2402.09353)."""
    rslora: bool = False
    """Scale the update by alpha / sqrt(rank) (rsLoRA, arXiv:2312.03732)."""


class FitConfig(Config):
    """How weights are fitted to pairs. ``batch_size`` counts pairs per optimizer step, over all workers."""

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
    layout: LayoutChoice = "auto"
    """How pairs are laid out. The results are the same but for rounding, so the reference is made in the same one."""
    lora: LoraConfig | None = None
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    seed: NonNegativeInt = 0


class RewardConfig(FitConfig):
    """The training of a reward model from a policy, on pairs of answers (Bradley-Terry)."""

    learning_rate: PositiveFloat = 1e-5
    margin: NonNegativeFloat = 0.0
    """How much more the chosen answer's reward is to be where the label is certain; less in proportion where it is
    not."""


class TrainConfig(ObjectiveConfig, FitConfig):
    """One DPO training."""

    peft: dict[str, Any] | None = None
    """Another adapter: ``peft_type`` and peft's own settings of that type."""
    quantization: Quantization | None = None
    """Bits of the frozen base under a LoRA adapter, in training and in its reference (QLoRA, arXiv:2305.14314)."""

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

    def changed(self, settings: Mapping[str, Any]) -> Self:
        """With other values of some settings, named as in ``lora.rank``; those of a single loss as in ``loss.gamma``.

        Raises:
            ValidationError: a setting does not exist, or does not take its value.
        """
        raw = self.model_dump(exclude_unset=True)
        raw.setdefault("loss", [loss.model_dump(exclude_unset=True) for loss in self.loss])
        raw.setdefault("divergence", self.divergence.model_dump(exclude_unset=True))
        for name in sorted(settings, key=lambda name: name.count(".")):  # a loss before its options
            *parents, last = name.split(".")
            target = raw
            for parent in parents:
                target[parent] = _opened(target.get(parent))
                target = target[parent]
            target[last] = settings[name]
        return self.model_validate(raw)


def _opened(value: Any) -> dict[str, Any]:
    """A setting as a mapping of which one value can be changed: a name is that of a loss or a divergence."""
    value = value[0] if isinstance(value, list | tuple) and len(value) == 1 else value
    return {"use": value} if isinstance(value, str) else dict(value) if isinstance(value, Mapping) else {}
