"""Small stages that leave a line for every execution, and a program that runs one of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path

from pipelines.plan.steps import Source, Step
from pipelines.run.runner import Runner, StepResult
from pipelines.run.store import ArtifactStore
from stages.base import Config, Stage, StageError, Summary
from stages.io.artifact import Artifact, UserFile
from stages.io.context import StageContext


class Inner(Config):
    rank: int = 4


class CountConfig(Config):
    add: int = 0
    label: str = ""
    inner: Inner | None = None


class LogConfig(Config):
    log: str
    """Where an execution leaves a line."""
    seconds: float = 0.0


def count(config: CountConfig, inputs: Mapping[str, Artifact | UserFile], context: StageContext) -> Summary:
    """Add up the numbers under the inputs."""
    total = config.add
    for artifact in inputs.values():
        path = artifact.path("number") if isinstance(artifact, Artifact) else Path(artifact.location)
        total += int(path.read_text())
    with context.output.part("number") as part:
        (part.folder / "number").write_text(str(total))
    context.progress(1, 1, "counted")
    return {"total": total}


def fail_once(config: CountConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Fail the first time, and go on from what that left the second time."""
    output = context.output
    if not (done := output.done()):
        with output.part("left") as part:
            (part.folder / "left").write_text("so far")
        with output.part("half") as part:
            (part.folder / "half").write_text("half")
            raise StageError("the first time fails")
    output.parts.append(done["left"])
    return {"found": (output.store.local(done["left"].place) / "left").read_text()}


def fail(config: CountConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    raise StageError("it always fails")


def slow(config: LogConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Leave a line, and take some time about it."""
    with Path(config.log).open("a") as file:
        file.write("run\n")
    time.sleep(config.seconds)
    with context.output.part("number") as part:
        (part.folder / "number").write_text("1")
    return {}


COUNT = Stage("count", 1, CountConfig, ("left", "right", "files"), "number", "tests.unit.steps:count")
FAIL = Stage("fail", 1, CountConfig, ("left",), "number", "tests.unit.steps:fail")
FAIL_ONCE = Stage("fail_once", 1, CountConfig, ("left",), "number", "tests.unit.steps:fail_once")
SLOW = Stage("slow", 1, LogConfig, (), "number", "tests.unit.steps:slow")


def counted(key: str, config: CountConfig | None = None, **inputs: Step | Source) -> Step:
    return Step(key, COUNT, config or CountConfig(), inputs)


class Recorder:
    """A listener that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self.connected = 0

    def connect(self) -> None:
        self.connected += 1

    def started(self, step: Step, reason: str) -> None:
        self.told.append((step.key, f"started: {reason}"))

    def waiting(self, step: Step) -> None:
        self.told.append((step.key, "waiting"))

    def progress(self, step: Step, done: int, total: int, note: str) -> None:
        self.told.append((step.key, f"{done}/{total} {note}"))

    def finished(self, result: StepResult) -> None:
        self.told.append((result.step.key, "cached" if result.cached else "done"))


def runner(store: ArtifactStore) -> tuple[Runner, Recorder]:
    recorder = Recorder()
    return Runner(store, recorder, recorder.connect), recorder


if __name__ == "__main__":
    place, log = sys.argv[1:]
    runs, _ = runner(ArtifactStore(place))
    print("ready", flush=True)
    sys.stdin.readline()
    (result,) = runs.run([Step("slow", SLOW, LogConfig(log=log, seconds=0.3), {})])
    print("cached" if result.cached else "done")
