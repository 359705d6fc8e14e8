"""What memory there is for a worker, and what to change where it takes more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from pipelines.plan.memory import GIB, Need, training
from pipelines.plan.shape import Shape
from stages.base import Resources, TrainResources
from stages.train.config import FitConfig, LoraConfig, RewardConfig, TrainConfig

ACCELERATORS: Mapping[str, tuple[float, ...]] = {
    "A100": (40, 80), "A100-40G": (40,), "A100-80G": (80,), "H100": (80,), "H200": (141,), "H20": (96,), "GH200": (96,),
    "B200": (180,), "L4": (24,), "L40S": (48,), "A10G": (24,), "A10": (24,), "T4": (16,), "V100": (16, 32),
    "P100": (16,), "P4": (8,), "K80": (12,), "A6000": (48,),
}  # fmt: skip
"""GiB of one GPU by Ray's name for its type, as its maker states them; a type may come in two sizes."""
OFFLOADED = (
    "that is what resources.train.offload moves there: take more workers, machines with more memory, or train.lora"
)
"""What to do where even main memory is too small."""
_MOST_WORKERS = 64
_ENGINE_SHARE = 0.9
"""Of a GPU, what vLLM takes if nothing else is said (its ``gpu_memory_utilization``)."""


@dataclass(frozen=True)
class Room:
    """Memory for one worker, in bytes: ``large`` and, where a GPU of that type comes in two sizes, ``small``."""

    name: str
    large: int
    small: int
    gpu: bool = False


def room(resources: Resources, machine: int | None) -> Room | None:
    """Where a worker runs and how much memory is there for it; None where that is not known.

    Args:
        machine: bytes of this machine's main memory, if its workers run here.
    """
    if resources.gpus:
        sizes = ACCELERATORS.get(resources.accelerator_type or "")
        if sizes is None:
            return None
        share, name = min(resources.gpus, 1), f"{resources.gpus:g} of one " if resources.gpus < 1 else "one "
        sizes_in_bytes = [int(size * share * GIB) for size in sizes]
        return Room(f"{name}{resources.accelerator_type}", max(sizes_in_bytes), min(sizes_in_bytes), True)
    if resources.memory_gib:
        return Room("memory_gib", resources.memory_bytes, resources.memory_bytes)
    if machine is None or resources.label_selector:
        return None
    each = machine // resources.worker_range[0]
    return Room("this machine" if resources.worker_range[0] == 1 else "a worker's part of this machine", each, each)


def room_beside(resources: Resources, machine: int | None) -> Room | None:
    """The main memory for a worker with a GPU, as :func:`room`."""
    return room(resources.model_copy(update={"gpus": 0}), machine)


def misfit(key: str, stage: str, need: Need, place: Room | None, changes: Callable[[int], str]) -> str | None:
    """What is to be said where a worker of a stage takes more memory than there is; None where it fits.

    Args:
        changes: what to change so that a worker fits into so many bytes.
    """
    if place is None:
        return None
    wanted = int(need.total / _ENGINE_SHARE) if stage == "rollout" and place.gpu else need.total
    if wanted > place.large:
        when = f" {need.when}" if need.when else ""
        return (
            f"{key} would not fit{when}: a worker takes about {need.total / GIB:.1f} GiB of the "
            f"{place.large / GIB:.1f} GiB of {place.name}; {changes(place.large)}"
        )
    if wanted > place.small:
        return f"{key} fits {place.name} of {place.large / GIB:.0f} GiB, not one of {place.small / GIB:.0f} GiB"
    return None


def for_training(
    shape: Shape, config: FitConfig, resources: TrainResources, longest: int, machine: int | None, most: int
) -> str:
    """Each change that is enough alone; else what is enough together. ``machine``: as in :func:`room`."""

    def fits(config: FitConfig, resources: TrainResources) -> bool:
        need = training(shape, config, resources, longest)
        beside = room_beside(resources, machine) if need.main else None
        return need.total <= most and (beside is None or Need(need.main).total <= beside.large)

    single = [name for name, new, kind in _steps(config, resources, longest, fits) if fits(new, kind)]
    if single:
        return f"it would with {' or '.join(single)}"
    less = resources.model_copy(update={"checkpointing": True})
    least = max(1, min(resources.least_tokens, 2 * longest))
    less = less.model_copy(update={"micro_batch_tokens": least})
    together = f"resources.train.checkpointing: true and micro_batch_tokens: {least}"
    if fits(config, less):
        return f"it would with {together}"
    for name, new, kind in _steps(config, less, longest, fits):
        if fits(new, kind):
            return f"it would with {together} and {name}"
    return "lower prepare.max_length, or take larger machines"


def _steps(
    config: FitConfig, resources: TrainResources, longest: int,
    fits: Callable[[FitConfig, TrainResources], bool],
) -> Iterator[tuple[str, FitConfig, TrainResources]]:  # fmt: skip
    """Single changes by their keys, in the order in which docs/training.md names them."""
    tokens = resources.least_tokens
    while tokens // 2 >= 2 * longest:
        tokens //= 2
        changed = resources.model_copy(update={"micro_batch_tokens": tokens})
        if fits(config, changed):
            yield f"resources.train.micro_batch_tokens: {tokens}", config, changed
            break
    if not resources.checkpointing:
        changed = resources.model_copy(update={"checkpointing": True})
        yield "resources.train.checkpointing: true", config, changed
    section = "reward" if isinstance(config, RewardConfig) else "train"
    if config.lora is None and not (isinstance(config, TrainConfig) and config.peft):
        yield f"{section}.lora: {{rank: 16}}", config.model_copy(update={"lora": LoraConfig()}), resources
    shares = config.optimizer == "adamw" and not (isinstance(config, TrainConfig) and config.quantization)
    if resources.gpus and shares:
        workers = max(2, resources.worker_range[0])
        while workers <= _MOST_WORKERS:
            changed = resources.model_copy(update={"strategy": "fsdp", "workers": workers})
            if fits(config, changed):
                yield f"resources.train: {{strategy: fsdp, workers: {workers}}}", config, changed
                break
            workers *= 2
        if resources.strategy == "fsdp" and resources.worker_range[0] > 1 and not resources.offload:
            yield "resources.train.offload: true", config, resources.model_copy(update={"offload": True})


def for_reference(_most: int) -> str:
    return "every worker reads the whole model: take larger machines under resources.reference"


def for_rollout(weights: int, most: int) -> str:
    """vLLM shares weights among the GPUs of a machine."""
    fitting = next((n for n in (2, 4, 8) if weights / n <= _ENGINE_SHARE * most / 2), None)
    if fitting is None:
        return "take larger machines under resources.rollout"
    return f"it would with resources.rollout.tensor_parallel: {fitting}"
