"""What the steps of a plan take: tokens, as far as they are known before a run, and memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.plan import capacity, memory
from pipelines.plan.shape import NOT_HERE, Shape, of_folder
from pipelines.plan.steps import Found, Source, Step
from pipelines.run.runner import Committed
from pipelines.run.store import ArtifactStore
from stages.base import RolloutResources, TrainResources
from stages.generate.config import RolloutConfig
from stages.io.filenames import MODEL
from stages.policy.config import MaterialiseConfig
from stages.policy.files import CONFIG
from stages.score.config import ReferenceConfig
from stages.train.config import FitConfig

_SECTION = {"train": "train", "train_reward": "train", "reference": "reference", "rollout": "rollout"}
"""The stages that are looked at, and where their resources are set."""


@dataclass(frozen=True)
class Needs:
    """What a step takes, each worker of it. ``unknown`` says why the memory is not known."""

    step: Step
    tokens: int | None = None
    """Of the pairs, once for each epoch; of a rollout the most that are generated."""
    memory: memory.Need | None = None
    unknown: str = ""
    misfit: str | None = None

    def as_json(self) -> dict[str, Any]:
        """For programs; sizes in bytes."""
        found: dict[str, Any] = {"workers": list(self.step.resources.worker_range), "tokens": self.tokens}
        if self.memory is None:
            return found | {"memory": None, "unknown": self.unknown}
        parts = {name: size for name, size in self.memory.parts.items() if size}
        return found | {
            "memory": self.memory.total, "parts": parts, "moments": dict(self.memory.moments),
            "main_memory": dict(self.memory.main), "misfit": self.misfit,
        }  # fmt: skip


@dataclass
class Estimator:
    """Asks each step of a plan what it takes.

    ``longest`` are the most tokens of a prompt and a response together; ``machine`` is this machine's main memory in
    bytes, if the workers run here.
    """

    store: ArtifactStore
    committed: Committed
    longest: int
    machine: int | None

    def __call__(self, step: Step) -> Needs | None:
        """None where a step is of no stage that is looked at."""
        if step.stage.name not in _SECTION:
            return None
        shape, tokens = self._shape(step.inputs["policy"]), self._tokens(step)
        if isinstance(shape, str):
            return Needs(step, tokens, unknown=shape)
        need = self._memory(step, shape)
        place = _named(capacity.room(step.resources, self.machine), step)
        said = capacity.misfit(step.key, step.stage.name, need, place, self._changes(step, shape, need))
        if need.main and said is None:
            place, beside = _named(capacity.room_beside(step.resources, self.machine), step), memory.Need(need.main)
            said = capacity.misfit(step.key, step.stage.name, beside, place, lambda _: capacity.OFFLOADED)
        return Needs(step, tokens, need, misfit=said)

    def _memory(self, step: Step, shape: Shape) -> memory.Need:
        config, resources = step.config, step.resources
        if isinstance(config, FitConfig):
            assert isinstance(resources, TrainResources)
            return memory.training(shape, config, resources, self.longest)
        if isinstance(config, ReferenceConfig):
            return memory.reference(shape, config, resources, self.longest)
        assert isinstance(config, RolloutConfig)
        assert isinstance(resources, RolloutResources)
        return memory.rollout(shape, config, resources)

    def _changes(self, step: Step, shape: Shape, need: memory.Need) -> Any:
        if isinstance(step.config, FitConfig):
            assert isinstance(step.resources, TrainResources)
            return partial(capacity.for_training, shape, step.config, step.resources, self.longest, self.machine)
        if isinstance(step.config, ReferenceConfig):
            return capacity.for_reference
        return partial(capacity.for_rollout, need.parts["weights"])

    def _tokens(self, step: Step) -> int | None:
        """From the artifacts that are there already."""
        source = step.inputs.get("shards") or step.inputs.get("prompts")
        manifest = self.committed(source) if isinstance(source, Step) else None
        if manifest is None:
            return None
        summary, config = manifest["summary"], step.config
        if isinstance(config, RolloutConfig):
            rows = summary.get("rows")
            return None if rows is None else int(rows) * config.samples * config.max_tokens
        tokens = summary.get("tokens")
        epochs = config.epochs if isinstance(config, FitConfig) else 1
        return None if tokens is None else int(tokens) * epochs

    def _shape(self, policy: Step | Source) -> Shape | str:
        """The shape of a policy: that of the model that it was made from. A trained one is stored in float32."""
        assert isinstance(policy, Step)
        before = policy.inputs.get("policy") or policy.inputs.get("candidate")
        if before is not None and not isinstance(policy, Found):
            shape = self._shape(before)
            return shape if isinstance(shape, str) else replace(shape, stored=4)
        folder = self._made(policy) or _given(policy)
        return folder if isinstance(folder, str) else of_folder(folder)

    def _made(self, policy: Step) -> Path | None:
        """The folder of a model that is in a store on this machine's disk."""
        manifest = self.committed(policy)
        if manifest is None or not self.store.store.is_local or not manifest.get("parts"):
            return None
        folder = self.store.store.local(manifest["parts"][0]["place"]) / MODEL
        return folder if (folder / CONFIG).is_file() else None


def _named(place: capacity.Room | None, step: Step) -> capacity.Room | None:
    """With the name of the setting that it comes from, where it comes from one."""
    if place is not None and place.name == "memory_gib":
        return replace(place, name=f"resources.{_SECTION[step.stage.name]}.memory_gib")
    return place


def _given(policy: Step) -> Path | str:
    """The folder of the model that a base is made from, the user's own or the hub's cache on this machine; or why there
    is none yet."""
    source, config = policy.inputs.get("source"), policy.config
    if isinstance(source, Source) and source.path.is_dir():
        return source.path
    if not isinstance(config, MaterialiseConfig) or config.hub is None:
        return "not known before the base model is made"
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(config.hub, CONFIG, revision=config.revision)
    return Path(found).parent if isinstance(found, str) else NOT_HERE
