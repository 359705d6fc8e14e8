"""Run a plan: skip what is committed, run the rest, commit each step as it ends."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from pipelines.fingerprint import data_identity, hash_path
from pipelines.plan.steps import Found, Source, Step
from pipelines.run.explain import Explain
from pipelines.run.store import ArtifactStore, Manifest
from stages.base import StageError, resolve
from stages.io.artifact import Artifact, UserFile
from stages.io.context import StageContext
from stages.io.output import Output
from stages.io.store import StoreError
from stages.readers import file_at


class Listener(Protocol):
    """Who is told how a run goes."""

    def started(self, step: Step, reason: str) -> None: ...
    def waiting(self, step: Step) -> None: ...
    def progress(self, step: Step, done: int, total: int, note: str) -> None: ...
    def finished(self, result: StepResult) -> None: ...


@dataclass(frozen=True)
class StepResult:
    step: Step
    cached: bool
    seconds: float
    """Of the execution; for a cached step, of the execution that made it."""
    summary: Mapping[str, Any]
    """What the stage returned."""
    artifact: Artifact
    manifest: str
    """The manifest's place in the store."""


class StepFailed(Exception):
    """A stage raised. ``__cause__`` is what it raised."""

    def __init__(self, step: Step, cause: BaseException) -> None:
        super().__init__(f"{step.key}: {cause}")
        self.step = step


@dataclass
class Runner:
    store: ArtifactStore
    listener: Listener
    connect: Callable[[], None]
    """Called once, before the first step that has to be executed."""
    results: list[StepResult] = field(default_factory=list)
    version: str = field(default_factory=lambda: importlib.metadata.version("rondo-dpo"))
    _connected: bool = False

    def __post_init__(self) -> None:
        self._explain = Explain(self.store)
        self._committed = Committed(self.store)

    def run(self, steps: Sequence[Step]) -> list[StepResult]:
        """Run the steps in order.

        Raises:
            StepFailed: a stage raised; the steps before it stay committed.
        """
        for step in steps:
            result = self._cached(step) or self._locked(step)
            self.results.append(result)
            self.listener.finished(result)
        return self.results

    def _cached(self, step: Step) -> StepResult | None:
        manifest = self._committed(step)
        if manifest is None:
            return None
        self.store.forget_work(self.output(step))
        return self._result(step, True, manifest)

    def _locked(self, step: Step) -> StepResult:
        """Execute, unless another run on this machine is at it: then wait and take its result."""
        with self.store.lock(step.fingerprint, timeout=0) as free:
            if free:
                return self._cached(step) or self._execute(step)
        self.listener.waiting(step)
        with self.store.lock(step.fingerprint):
            return self._cached(step) or self._execute(step)

    def _result(self, step: Step, cached: bool, manifest: Manifest) -> StepResult:
        place = f"{self.output(step).place}/manifest.json"
        return StepResult(step, cached, manifest["seconds"], manifest["summary"], self.store.open(manifest), place)

    def artifact(self, step: Step) -> Artifact | None:
        """What a step made, if its result is there."""
        manifest = self._committed(step)
        return None if manifest is None else self.store.open(manifest)

    def output(self, step: Step) -> Output:
        """Where a step's artifact is made; all its inputs have to be there."""
        return Output(self.store.store, *self._committed.place(step))

    def _execute(self, step: Step) -> StepResult:
        for value in step.inputs.values():
            if isinstance(value, Found) and self._committed(value) is None:
                place = "/".join(("artifacts", *value.made))
                gone = StageError(f"{place}, an input, is not in {self.store.location} any more; restore it")
                raise StepFailed(step, gone) from gone
        self.listener.started(step, self._explain(step))
        if not self._connected:
            self.connect()
            self._connected = True
        output = self.output(step)
        if any(isinstance(value, Source) for value in step.inputs.values()):
            self.store.forget_work(output)  # the files may have been others for a while
        self.store.discard(output)
        context = StageContext(output, step.resources, partial(self.listener.progress, step))
        started = time.monotonic()
        try:
            summary = resolve(step.stage.run)(step.config, self.inputs(step), context)
        except Exception as error:
            if (theirs := self._theirs(step, output, error)) is not None:
                return theirs
            raise StepFailed(step, error) from error
        self._check_sources(step)
        manifest: Manifest = {
            "key": step.key,
            "produces": step.stage.produces,
            "payload": step.payload,
            "made_from": self._committed.made_from(step),
            "summary": summary,
            "seconds": round(time.monotonic() - started, 2),
            "rondo": self.version,
        }
        manifest = self._committed.add(step, self.store.commit(output, manifest))
        self._explain.committed(step)
        return self._result(step, False, manifest)

    def _theirs(self, step: Step, output: Output, error: Exception) -> StepResult | None:
        """The result of another machine that was faster, and has deleted what both continue from: why this failed."""
        if isinstance(error, StoreError):
            return None
        try:
            made = [*output.parts, *output.done().values()]
            if (theirs := self._cached(step)) is not None:
                self.store.abandon(made, theirs.artifact.parts)
        except StoreError:
            return None
        return theirs

    def _check_sources(self, step: Step) -> None:
        """What was read has to be what was hashed when the plan was made."""
        for value in step.inputs.values():
            if isinstance(value, Source) and _identity(value) != value.fingerprint:
                place = value.data.uri if value.data else value.path
                error = StageError(f"{place} was changed while it was being read; run the same command again")
                raise StepFailed(step, error) from error

    def inputs(self, step: Step) -> dict[str, Artifact | UserFile]:
        """What a step is given; all of it has to be there."""
        inputs: dict[str, Artifact | UserFile] = {}
        for name, value in step.inputs.items():
            if isinstance(value, Source):
                inputs[name] = UserFile(value.data.uri if value.data else str(value.path), value.key)
            else:
                manifest = self._committed(value)
                assert manifest is not None, value.key  # steps come after their inputs
                inputs[name] = self.store.open(manifest)
        return inputs


def _identity(source: Source) -> str:
    return data_identity(file_at(source.data.uri)) if source.data else hash_path(source.path)


class Committed:
    """The manifests of steps whose artifacts were made from those of their inputs that are there now.

    An input that was deleted and made anew may differ in content (sampling is not repeatable), so what was made from
    the old one no longer counts. What was found once is not looked for again: inputs stay those that a run has opened.
    """

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self._found: dict[str, Manifest] = {}

    def __call__(self, step: Step) -> Manifest | None:
        if step.fingerprint in self._found:
            return self._found[step.fingerprint]
        if isinstance(step, Found):
            manifest = self._store.manifest_at(*step.made)
            return None if manifest is None else self.add(step, manifest)
        inputs = [value for value in step.inputs.values() if isinstance(value, Step)]
        if any(self(value) is None for value in inputs):
            return None
        manifest = self._store.manifest(step.fingerprint, self.made_from(step))
        return None if manifest is None else self.add(step, manifest)

    def add(self, step: Step, manifest: Manifest) -> Manifest:
        self._found[step.fingerprint] = manifest
        return manifest

    def place(self, step: Step) -> tuple[str, str]:
        """Where a step's artifact is (``artifacts/<fingerprint>/<inputs>``); it has to be there."""
        if isinstance(step, Found):
            return step.made
        return step.fingerprint, self._store.output(step.fingerprint, self.made_from(step)).inputs

    def made_from(self, step: Step) -> dict[str, str]:
        """The attempt of each input's artifact; all of them have to be there."""
        steps = {name: value for name, value in step.inputs.items() if isinstance(value, Step)}
        return {name: self._found[value.fingerprint]["attempt"] for name, value in steps.items()}
