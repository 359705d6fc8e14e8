"""Trials of a sweep: what a point in its space means to the plan, and what has to be there before the first one."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.fingerprint import fingerprint
from pipelines.plan.rounds import Plan, Planner, Round
from pipelines.plan.steps import Step, walk
from pipelines.run.runner import Runner
from pipelines.spec.models import PipelineSpec, train_of
from stages.io.artifact import Artifact
from stages.score.config import HeldoutConfig
from stages.train.config import TrainConfig
from stages.tune.config import WIN_RATE, SweepConfig

Point = Mapping[str, Any]
_SHAPING = ("loss", "precision", "layout", "quantization", "constraints")
"""Settings on which depends what a training is given: its reference's log-probabilities, and how they were made."""
_NO_MATTER = ("trials", "parallel", "minutes", "promote", "every")
"""What of a sweep may change from one command to the next, which then goes on with the same sweep."""


@dataclass
class Space:
    """The plans that a sweep's points stand for, in one of the pipeline's rounds."""

    spec: PipelineSpec
    folder: Path
    number: int
    """The round."""
    planner: Planner = field(init=False)

    def __post_init__(self) -> None:
        self.planner = Planner(self.spec, self.folder)

    @property
    def settings(self) -> SweepConfig:
        assert self.spec.sweep is not None
        return self.spec.sweep

    @property
    def name(self) -> str:
        """Tells a sweep from every other: from the same one with more trials it does not."""
        probe = self.round({name: dimension.probes()[0] for name, dimension in self.settings.space.items()})
        payload = {"train": probe.train.payload}
        if probe.evaluate is not None and WIN_RATE in self.settings.objective:  # another judge finds another winner
            payload["evaluate"] = probe.evaluate.payload
        settings = {name: value for name, value in self.settings.identity().items() if name not in _NO_MATTER}
        suffix = "" if self.number == 1 else f"-round-{self.number}"
        return f"{self.spec.name}-{fingerprint({**payload, 'sweep': settings})[:8]}{suffix}"

    def spec_of(self, point: Point, seed: int = 0) -> PipelineSpec:
        """The spec up to this round, with a point's values in it; ``seed`` numbers the trainings of a point."""
        iterate = self.spec.iterate
        own = train_of(self.spec.train, iterate, self.number).seed + seed
        values = {**iterate.train.get(self.number, {}), **point, **({"seed": own} if seed else {})}
        changed = {**iterate.train, self.number: values}
        update = {"rounds": self.number, "iterate": iterate.model_copy(update={"train": changed})}
        return self.spec.model_copy(update=update)

    def plan(self, point: Point, seed: int = 0) -> Plan:
        return self.planner.plan(self.spec_of(point, seed))

    def round(self, point: Point, seed: int = 0) -> Round:
        return self.plan(point, seed).rounds[-1]

    def shared(self) -> list[Step]:
        """All that trials need, whatever their values, in the order it runs."""
        found: list[Step] = []
        for point in self._shapes():
            made = self.round(point)
            found += [step for step in made.train.inputs.values() if isinstance(step, Step)]
            if made.heldout is not None:
                inputs = made.heldout.inputs
                found += [step for name, step in inputs.items() if name != "policy" and isinstance(step, Step)]
        return sorted(walk(found), key=lambda step: any(isinstance(value, Step) for value in step.inputs.values()))

    def _shapes(self) -> Iterator[Point]:
        """Points with every combination of the settings on which it depends what trials need."""
        space = self.settings.space
        choices = [
            dimension.probes() if name.partition(".")[0] in _SHAPING else dimension.probes()[:1]
            for name, dimension in space.items()
        ]
        for values in itertools.product(*choices):
            yield dict(zip(space, values, strict=True))


def make(space: Space, runner: Runner, number: int, point: Point, cpus: int, recorded: Any) -> Any:
    """The trial of a point, for its worker; ``recorded`` is what is known of one that has ended."""
    from stages.tune.measure import HeldOut
    from stages.tune.search import rungs
    from stages.tune.trial import Training, Trial

    trainings = []
    heldout = None
    for seed in range(space.settings.seeds):
        made = space.round(point, seed)
        train = made.train
        given = {name: artifact for name, artifact in runner.inputs(train).items() if isinstance(artifact, Artifact)}
        assert isinstance(train.config, TrainConfig)
        trainings.append(Training(train.config, given, runner.output(train)))
        if made.heldout is not None:
            inputs = {name: step for name, step in made.heldout.inputs.items() if isinstance(step, Step)}
            reference = runner.artifact(inputs["reference"]) if "reference" in inputs else None
            pairs = runner.artifact(inputs["shards"])
            assert pairs is not None
            assert isinstance(made.heldout.config, HeldoutConfig)
            heldout = HeldOut(pairs, reference, made.heldout.config.objective, rungs(space.settings))
    resources = space.spec.resources.train
    paths = tuple(sys.path)
    needs = space.settings.needs if heldout is not None else ()
    return Trial(number, tuple(trainings), heldout, rungs(space.settings), needs, resources, cpus, paths, recorded)


def places(spec: PipelineSpec, machines: Sequence[Any]) -> tuple[int, int]:
    """How many trials run at the same time, and the CPUs of each of their workers.

    Without a number in the spec it is one on CPUs, whose threads it has to itself; with GPUs as many as these have
    room for.
    """
    from stages.io import nodes

    assert spec.sweep is not None
    resources, parallel = spec.resources.train, spec.sweep.parallel
    fewest = resources.worker_range[0]
    if parallel is None:
        room = nodes.room(resources, resources.cpus or 1, machines) // fewest if resources.gpus else 1
        parallel = max(1, min(room, spec.sweep.wanted))
    return parallel, nodes.cpus_per_worker(resources.times(parallel), machines)
