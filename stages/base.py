"""What a stage is: its name, configuration and resources. Imports nothing heavy."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveInt, field_validator, model_validator

Summary = dict[str, Any]
"""What a stage says about its work: JSON values, kept in the artifact's manifest."""


class Config(BaseModel):
    """Base of every configuration: frozen, unknown keys refused, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def identity(self) -> dict[str, Any]:
        """The values that differ from their defaults: adding a defaulted field later changes no fingerprint."""
        return self.model_dump(mode="json", exclude_defaults=True)


def plain(value: dict[str, Any]) -> dict[str, Any]:
    """Free mappings are part of the identity, so they need one canonical form.

    Raises:
        ValueError: something in it is not a plain JSON value.
    """
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        if json.loads(text.encode()) != value:
            raise ValueError("a key is not text")
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"only text, finite numbers, booleans, lists and mappings are allowed: {error}") from None
    return value


class Plugin(Config):
    """The user's own code, ``use: "module:name"``, with the options it is called with. Its source is part of the
    identity (``pipelines.plugins``)."""

    use: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("options")
    @classmethod
    def _plain(cls, value: dict[str, Any]) -> dict[str, Any]:
        return plain(value)


_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
_LABEL_NAME = rf"(?:{_LABEL}/)?{_LABEL}"
_CONDITION = rf"!?(?:{_LABEL}|in\({_LABEL}(?:, ?{_LABEL})*\))"
"""What Ray takes for a label and for a condition on one."""


class Resources(Config):
    """Where and how wide a stage runs. Never part of an identity: results do not depend on it."""

    workers: PositiveInt = 1
    cpus: PositiveInt | None = None
    """CPUs per worker; by default those that Rondo may use are divided among the workers."""
    gpus: NonNegativeFloat = 0
    """GPUs per worker."""
    memory_gib: NonNegativeFloat = 0
    """Memory per worker that has to be free on its machine, in GiB."""
    accelerator_type: str | None = None
    """The GPU's type as Ray names it, such as ``H100``."""
    label_selector: dict[str, str] = Field(default_factory=dict)
    """Labels of the machines to use, with Ray's conditions: ``a``, ``!a``, ``in(a,b)`` or ``!in(a,b)``."""

    @field_validator("gpus")
    @classmethod
    def _countable(cls, value: float) -> float:
        if (value > 1 and value != int(value)) or round(value, 4) != value:
            raise ValueError(f"expected whole GPUs, or a part of one with at most 4 decimals, got {value:g}")
        return value

    @field_validator("label_selector")
    @classmethod
    def _conditions(cls, value: dict[str, str]) -> dict[str, str]:
        for name, condition in value.items():
            if not re.fullmatch(_LABEL_NAME, name) or not re.fullmatch(_CONDITION, condition):
                raise ValueError(
                    f"{name}: {condition} is no condition on a label; expected a, !a, in(a,b) or !in(a,b), of letters, "
                    "digits and - _ . inside"
                )
        return value

    @property
    def worker_range(self) -> tuple[int, int]:
        """The fewest and the most workers."""
        return self.workers, self.workers

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gib * 2**30)

    def options(self, cpus: int) -> dict[str, Any]:
        """What a worker with so many CPUs asks Ray for."""
        kind, labels = self.accelerator_type, self.label_selector
        more = {"memory": self.memory_bytes, "accelerator_type": kind, "label_selector": labels}
        return {"num_cpus": cpus, "num_gpus": self.gpus, **{name: value for name, value in more.items() if value}}


class RolloutResources(Resources):
    """Resources of a generation engine, which may span several GPUs of a machine."""

    tensor_parallel: Annotated[int, Field(strict=True, gt=0)] = 1
    """GPUs that share the weights of one engine (vLLM's ``tensor_parallel_size``); it is given as many."""

    @model_validator(mode="before")
    @classmethod
    def _gpus(cls, values: Any) -> Any:
        together = values.get("tensor_parallel", 1) if isinstance(values, dict) else None
        if not isinstance(together, int):
            return values
        gpus = values.get("gpus", together if together > 1 else 0)
        if (isinstance(gpus, int | float) and gpus > 1 and gpus != together) or (together > 1 and gpus != together):
            raise ValueError(f"an engine uses tensor_parallel GPUs, here {together}, got gpus {gpus!r}")
        return {**values, "gpus": gpus}


LEAST_TOKENS = 2048
"""What ``micro_batch_tokens: auto`` begins with on a GPU, and is on a CPU."""


class TrainResources(Resources):
    """Resources of a training step, and how a batch is cut up to fit in memory."""

    workers: PositiveInt | tuple[PositiveInt, PositiveInt] = 1  # type: ignore[assignment]
    """A number, or [fewest, most]: then as many as there is room for, even as machines come and go."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """``ddp``: every worker holds the whole model. ``fsdp``: weights, gradients and optimizer moments are split
    among the workers, which send each other what they need."""
    offload: bool = False
    """The workers' shares lie in main memory; of the weights, a GPU has those that it works with."""
    micro_batch_tokens: PositiveInt | Literal["auto"] = LEAST_TOKENS
    """Tokens (padding included) of one forward pass; a micro-batch holds at least one pair. ``auto``: as many
    as fit in a GPU's memory."""
    checkpointing: bool = False
    """Activation checkpointing: keep only the layers' inputs and recompute the rest, a third more time for far
    less memory."""
    checkpoint_every: PositiveInt = 10
    """Optimizer steps between checkpoints: the most that a crash can cost."""
    max_failures: Annotated[int, Field(ge=-1)] = 3
    """How often lost workers are replaced before the step fails; -1 is without limit."""

    @field_validator("workers", mode="before")
    @classmethod
    def _workers(cls, value: Any) -> Any:
        numbers = list(value) if isinstance(value, list | tuple) and len(value) == 2 else [value]
        if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in numbers):
            raise ValueError(f"expected a number of workers, at least 1, or [fewest, most], got {value!r}")
        if numbers[0] > numbers[-1]:
            raise ValueError(f"the fewest workers come first: [{numbers[1]}, {numbers[0]}], got {value!r}")
        return value

    @field_validator("micro_batch_tokens", mode="before")
    @classmethod
    def _tokens(cls, value: Any) -> Any:
        if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"expected a number of tokens, at least 1, or auto, got {value!r}")
        return value

    @property
    def least_tokens(self) -> int:
        """Tokens of a micro-batch where none has been tried."""
        return LEAST_TOKENS if self.micro_batch_tokens == "auto" else self.micro_batch_tokens

    @property
    def worker_range(self) -> tuple[int, int]:
        return self.workers if isinstance(self.workers, tuple) else (self.workers, self.workers)

    def times(self, trainings: int) -> TrainResources:
        """The resources of so many trainings at the same time."""
        fewest, most = (workers * trainings for workers in self.worker_range)
        return self.model_copy(update={"workers": (fewest, most) if fewest < most else most})


C = TypeVar("C", bound=Config)


class StageError(Exception):
    """A stage cannot do its work, for a reason the user can act on. The message says what and how."""


@dataclass(frozen=True)
class Stage(Generic[C]):
    """A named, versioned function from artifacts and a configuration to one artifact.

    ``inputs`` names what may be given; ``files`` accepts ``files.0``, ``files.1`` and so on. ``run`` is
    ``module:function``, imported only when the stage executes. Raise ``version`` when the output changes.
    """

    name: str
    version: int
    config: type[C]
    inputs: tuple[str, ...]
    produces: str
    run: str


def resolve(reference: str) -> Any:
    """Import the object that ``module:name`` refers to.

    Raises:
        ValueError: ``reference`` does not have that form.
        ImportError: there is no such module, or it has no such name.
    """
    module_name, separator, attribute = reference.partition(":")
    if not separator or not module_name or not attribute.isidentifier():
        raise ValueError(f'expected "module:name", got {reference!r}')
    module = importlib.import_module(module_name)
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise ImportError(f"module {module_name!r} has no {attribute!r}") from None


Share = Annotated[float, Field(ge=0, le=1)]
