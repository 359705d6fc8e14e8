"""A plan is a graph of steps; a step is a stage with its configuration and inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.fingerprint import fingerprint
from pipelines.plugins import plugins
from stages.base import Config, Resources, Stage
from stages.readers import DataFile


@dataclass(frozen=True)
class Source:
    """A user's file or folder. Its identity is its content and, for a ``data`` file, what it is read as."""

    key: str
    path: Path
    fingerprint: str
    data: DataFile | None = None


@dataclass(frozen=True)
class Step:
    """A stage placed in a plan. ``key`` names it for people; it is not part of the identity."""

    key: str
    stage: Stage[Any]
    config: Config
    inputs: Mapping[str, Step | Source]
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        if not isinstance(self.config, self.stage.config):
            raise TypeError(f"{self.key}: {self.stage.name} takes a {self.stage.config.__name__}")
        unknown = [name for name in self.inputs if name.partition(".")[0] not in self.stage.inputs]
        if unknown:
            raise TypeError(f"{self.key}: {self.stage.name} has no input {', '.join(unknown)}")

    @cached_property
    def payload(self) -> dict[str, Any]:
        """What makes up the identity; kept in the manifest so that a miss can be explained."""
        config = self.config.identity()
        payload: dict[str, Any] = {
            "stage": self.stage.name,
            "version": self.stage.version,
            "config": config,
            "inputs": {name: value.fingerprint for name, value in self.inputs.items()},
        }
        if used := plugins(config):
            payload["plugins"] = used
        return payload

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.payload)


@dataclass(frozen=True)
class Found(Step):
    """An artifact that another run has committed: an input like any other, but never made here."""

    made: tuple[str, str] = ("", "")
    """Its fingerprint and its ``inputs`` (``artifacts/<fingerprint>/<inputs>``)."""

    def __post_init__(self) -> None:
        pass

    @cached_property
    def fingerprint(self) -> str:
        return self.made[0]


def found(key: str, stage: Stage[Any], made: tuple[str, str]) -> Found:
    """What the stage made in another run."""
    return Found(key, stage, Config(), {}, made=made)


def walk(targets: Iterable[Step]) -> list[Step]:
    """Every step to be made that the targets need, inputs before their users, each identity once."""
    order: dict[str, Step] = {}

    def visit(step: Step) -> None:
        if step.fingerprint in order:
            return
        for value in step.inputs.values():
            if isinstance(value, Step):
                visit(value)
        if not isinstance(step, Found):
            order[step.fingerprint] = step

    for target in targets:
        visit(target)
    return list(order.values())
