"""A sweep: which settings of the training are varied, how values are found, and what counts as better."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PositiveFloat,
    PositiveInt,
    Tag,
    field_validator,
)
from pydantic_core import PydanticCustomError

from stages.base import Config, plain
from stages.hints import hint
from stages.train.config import LoraConfig, TrainConfig

MODES: Mapping[str, Literal["min", "max"]] = {
    "heldout_loss": "min",
    "reward_accuracy": "max",
    "reward_margin": "max",
    "kl": "min",
    "win_rate": "max",
}
"""What can be aimed at, and in which direction."""
WIN_RATE = "win_rate"
_DEFAULT_TRIALS = 8


class Dimension(Config):
    """The values that one setting may take: exactly one of these. Ranges include both ends."""

    choice: tuple[Any, ...] | None = None
    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None
    randint: tuple[int, int] | None = None
    lograndint: tuple[int, int] | None = None

    @field_validator("choice")
    @classmethod
    def _choices(cls, value: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if value is not None and not value:
            raise ValueError("is empty; give at least one value")
        plain({"choice": list(value or ())})
        if value is not None and any(each in value[:place] for place, each in enumerate(value)):
            raise ValueError("has a value twice")
        return value

    @field_validator("uniform", "loguniform", "randint", "lograndint")
    @classmethod
    def _range(cls, value: tuple[float, float] | None, info: Any) -> tuple[float, float] | None:
        if value is None:
            return None
        low, high = value
        if low >= high:
            raise ValueError(f"is empty: expected [low, high] with low < high, got [{low:g}, {high:g}]")
        if info.field_name.startswith("log") and low <= 0:
            kind = info.field_name.removeprefix("log")
            raise ValueError(f"has no logarithm at {low:g}: begin above zero, or use {kind}")
        return value

    @property
    def kind(self) -> str:
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def log(self) -> bool:
        return self.kind.startswith("log")

    def probes(self) -> tuple[Any, ...]:
        """Values that show whether it fits a setting: all choices, or both ends and one between them."""
        if self.choice is not None:
            return self.choice
        low, high = getattr(self, self.kind)
        between = low + (high - low) / math.pi
        return (low, high) if "int" in self.kind else (low, high, between)


def _dimension(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return {"choice": value}
    if isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) not in Dimension.model_fields:
        (name,) = value
        text = f"unknown distribution {name!r}; {hint(str(name), Dimension.model_fields)}"
        raise PydanticCustomError("distribution", "{text}", {"text": text})
    if isinstance(value, Dimension) or (isinstance(value, Mapping) and len(value) == 1):
        return value
    text = "expected a list of values or one distribution, as in [8, 16] or {loguniform: [1.0e-6, 1.0e-5]}"
    raise PydanticCustomError("distribution", "{text}", {"text": text})


def settings() -> list[str]:
    """What can be varied, by name; besides, the options of a loss and of a divergence, and peft's own settings."""
    own = [name for name in TrainConfig.model_fields if name not in ("seed", "lora", "peft")]
    return [*own, *(f"lora.{name}" for name in LoraConfig.model_fields)]


def _setting(name: str) -> str:
    if name == "seed":
        raise ValueError("a seed is not better than another; sweep.seeds trains each configuration with several")
    first, _, rest = name.partition(".")
    if name not in settings() and not (first in ("loss", "divergence", "peft") and rest):
        raise ValueError(f"no such setting of train; {hint(name, settings())}")
    return name


class NoScheduler(Config):
    """Every trial trains to its end."""

    use: Literal["none"] = "none"
    measurements: PositiveInt = 1
    """How often a trial is measured on its way, the end included."""


class AshaScheduler(Config):
    """Asynchronous successive halving (Li et al., arXiv:1810.05934)."""

    use: Literal["asha"] = "asha"
    reduction: Annotated[int, Field(ge=2)] = 3
    """One in so many trials goes on from a rung."""
    rungs: Annotated[int, Field(ge=2, le=10)] = 3
    """The end of the training is the last; each one before it is ``reduction`` times earlier."""


class MedianScheduler(Config):
    """Trials that are worse than the median of the others so far end (Golovin et al., Google Vizier, 2017)."""

    use: Literal["median"] = "median"
    measurements: Annotated[int, Field(ge=2)] = 4
    min_trials: PositiveInt = 3
    """None ends before so many others were measured."""


_SCHEDULERS = ("none", "asha", "median")


def _scheduler(value: Any) -> Any:
    value = {"use": "none" if value is None else value} if isinstance(value, str | None) else value
    use = value.get("use") if isinstance(value, Mapping) else getattr(value, "use", None)
    if use not in _SCHEDULERS:
        text = f"unknown scheduler {use!r}; {hint(str(use), _SCHEDULERS)}"
        if use == "pbt":
            text = "pbt changes settings during a training, so no configuration stands for its result; use asha"
        raise PydanticCustomError("scheduler", "{text}", {"text": text})
    return value


Scheduler = Annotated[
    Annotated[NoScheduler, Tag("none")]
    | Annotated[AshaScheduler, Tag("asha")]
    | Annotated[MedianScheduler, Tag("median")],
    Discriminator(lambda value: value.get("use") if isinstance(value, Mapping) else value.use),
    BeforeValidator(_scheduler),
]
Objective = Literal["heldout_loss", "reward_accuracy", "reward_margin", "kl", "win_rate"]


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class SweepConfig(Config):
    """Many trainings that differ in a few settings; the rest of the spec is theirs in common."""

    space: Annotated[
        dict[Annotated[str, AfterValidator(_setting)], Annotated[Dimension, BeforeValidator(_dimension)]],
        Field(min_length=1),
    ]
    """What is varied: settings of ``train`` by name (``beta``, ``lora.rank``), each with its values."""
    search: Literal["random", "grid", "tpe"] = "tpe"
    """How values are found: drawn, all combinations, or from what the trials before came to (Optuna's TPE)."""
    scheduler: Scheduler = AshaScheduler()
    """Which trials end early."""
    trials: PositiveInt | None = None
    """Configurations to try, by default 8, or all combinations if there are fewer; a grid tries all."""
    parallel: PositiveInt | None = None
    """Trials at the same time; by default one for each place that its GPUs have, on CPUs one."""
    minutes: PositiveFloat | None = None
    """Time for the trials of one command; what has not ended by then is gone on with by the next."""
    seeds: PositiveInt = 1
    """Trainings of each configuration, with seeds of their own; what counts is their mean. A trial that ends early
    has only the first."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the search."""
    objective: Annotated[tuple[Objective, ...], BeforeValidator(_listed), Field(min_length=1)] = ("reward_accuracy",)
    """What is aimed at, on held-out pairs or, for ``win_rate``, on held-out prompts. Of several the first decides;
    those of which none is better in all make up the Pareto set."""
    promote: Literal["best"] | None = None
    """``best``: go on as ``rondo run`` does, with the best trial's values: evaluation, gate and further rounds."""
    every: PositiveInt | None = None
    """Rounds between two sweeps (``every: 2`` sweeps rounds 1, 3, ...); by default only the first is swept, and the
    others take its values."""

    @field_validator("objective")
    @classmethod
    def _once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("names the same twice")
        return value

    @property
    def combinations(self) -> int:
        """Points there are, where every setting has a list of values; else 0."""
        return math.prod(len(dimension.choice or ()) for dimension in self.space.values())

    @property
    def wanted(self) -> int:
        """Trials, all in all."""
        if self.search == "grid":
            return self.combinations
        return self.trials or min(_DEFAULT_TRIALS, self.combinations or _DEFAULT_TRIALS)

    @property
    def needs(self) -> tuple[Objective, ...]:
        """What every trial has to be measured by."""
        measured = [name for name in self.objective if name != WIN_RATE]
        return tuple(dict.fromkeys([*measured, self.guide]))

    @property
    def guide(self) -> Objective:
        """What the search and the scheduler go by, which has to be known while trials run."""
        measured: Iterator[Objective] = (name for name in self.objective if name != WIN_RATE)
        return next(measured, "reward_accuracy")
