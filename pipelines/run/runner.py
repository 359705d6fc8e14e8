"""Run a plan: skip what is committed, run the rest, commit each step as it ends."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from pipelines.fingerprint import data_identity, hash_path
from pipelines.plan.steps import Source, Step
from pipelines.run.explain import Explain
from pipelines.run.store import ArtifactStore
from stages.base import Artifact, StageContext, StageError, resolve
from stages.readers import file_at

Manifest = dict[str, Any]
ManifestOf = Callable[[str], Manifest | None]
"""A fingerprint's manifest, as ``ArtifactStore.manifest``."""


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
    _manifests: dict[str, Manifest] = field(default_factory=dict)
    """Of the steps so far, so that a step does not read those of its inputs again."""

    def __post_init__(self) -> None:
        self._explain = Explain(self.store)

    def run(self, steps: Sequence[Step]) -> list[StepResult]:
        """Run the steps in order.

        Raises:
            StepFailed: a stage raised; the steps before it stay committed.
        """
        for step in steps:
            result = self._cached(step, self._known) or self._locked(step)
            self.results.append(result)
            self.listener.finished(result)
        return self.results

    def _known(self, fingerprint: str) -> Manifest | None:
        return self._manifests.get(fingerprint) or self.store.manifest(fingerprint)

    def _cached(self, step: Step, manifest_of: ManifestOf) -> StepResult | None:
        manifest = committed(step, manifest_of)
        if manifest is None:
            return None
        self.store.forget_work(step.fingerprint)
        self._manifests[step.fingerprint] = manifest
        return StepResult(step, True, manifest["seconds"], manifest["summary"])

    def _locked(self, step: Step) -> StepResult:
        """Execute, unless another run on this machine is at it: then wait and take its result."""
        with self.store.lock(step.fingerprint, timeout=0) as free:
            if free:
                return self._cached(step, self.store.manifest) or self._execute(step)
        self.listener.waiting(step)
        with self.store.lock(step.fingerprint):
            return self._cached(step, self.store.manifest) or self._execute(step)

    def _execute(self, step: Step) -> StepResult:
        self.listener.started(step, self._explain(step))
        if not self._connected:
            self.connect()
            self._connected = True
        self.store.discard(step.fingerprint)
        attempt = self.store.attempt(step.fingerprint)
        context = StageContext(
            fingerprint=step.fingerprint,
            output=attempt.path,
            work=self.store.work(step.fingerprint),
            resources=step.resources,
            progress=partial(self.listener.progress, step),
        )
        started = time.monotonic()
        try:
            summary = resolve(step.stage.run)(step.config, self._inputs(step), context)
        except Exception as error:
            raise StepFailed(step, error) from error
        self._check_sources(step)
        seconds = round(time.monotonic() - started, 2)
        manifest: Manifest = {
            "key": step.key,
            "produces": step.stage.produces,
            "payload": step.payload,
            "made_from": made_from(step, self.store.manifest),
            "summary": summary,
            "seconds": seconds,
            "rondo": self.version,
        }
        manifest = self._manifests[step.fingerprint] = self.store.commit(attempt, manifest)
        self._explain.committed(step)
        return StepResult(step, False, seconds, manifest["summary"])

    def _check_sources(self, step: Step) -> None:
        """What was read has to be what was hashed when the plan was made."""
        for value in step.inputs.values():
            if isinstance(value, Source) and _identity(value) != value.fingerprint:
                place = value.data.uri if value.data else value.path
                error = StageError(f"{place} was changed while it was being read; run the same command again")
                raise StepFailed(step, error) from error

    def _inputs(self, step: Step) -> dict[str, Artifact]:
        return {
            name: Artifact(value.path, value.fingerprint, uri=value.data.uri if value.data else "", key=value.key)
            if isinstance(value, Source)
            else self.store.open(value.fingerprint)
            for name, value in step.inputs.items()
        }


def _identity(source: Source) -> str:
    return data_identity(file_at(source.data.uri)) if source.data else hash_path(source.path)


def made_from(step: Step, manifest_of: ManifestOf) -> dict[str, str | None]:
    """Which attempt of each input's artifact is there now."""
    manifests = {name: manifest_of(v.fingerprint) for name, v in step.inputs.items() if isinstance(v, Step)}
    return {name: manifest["attempt"] if manifest else None for name, manifest in manifests.items()}


def committed(step: Step, manifest_of: ManifestOf) -> Manifest | None:
    """The manifest of a step's artifact, if it was made from the artifacts that are there now.

    An input that was deleted and made anew may differ in content (sampling is not repeatable), so what was made
    from the old one no longer counts.
    """
    manifest = manifest_of(step.fingerprint)
    return manifest if manifest and manifest.get("made_from", {}) == made_from(step, manifest_of) else None
