"""``rondo train-reward``: the reward model of a spec, without its rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from clusters.local import LocalCluster
from pipelines.commands import stepping
from pipelines.plan.base_model import base_step
from pipelines.plan.given import preferences
from pipelines.plan.reward import reward_step
from pipelines.plan.steps import Step, walk
from pipelines.run.connection import Connection
from pipelines.run.runner import StepResult
from pipelines.run.store import ArtifactStore
from pipelines.spec.load import Loaded
from pipelines.spec.problems import Problem, SpecError
from stages.io.filenames import MODEL


def plan(loaded: Loaded) -> list[Step]:
    """The steps that end in the reward model.

    Raises:
        SpecError: the spec trains none.
    """
    spec, folder = loaded.spec, loaded.path.parent
    base = base_step(spec.policy, folder)
    step = reward_step(spec, base, preferences(spec, folder, base))
    if step is None:
        raise SpecError([Problem(loaded.where(("reward",)), "trains no reward model; give reward and preferences")])
    return walk([step])


def train(
    loaded: Loaded, steps: list[Step], store: ArtifactStore, as_json: bool, verbose: bool,
    ray: str | LocalCluster | None, wait: float,
) -> int:  # fmt: skip
    """Train it, and say how it went and where it is. Returns the exit code."""

    def show(results: Sequence[StepResult], _: Console, say: stepping.Say) -> dict[str, Any]:
        made = results[-1].artifact
        found = {"reward_model": f"{store.location}/{made.parts[0].place}/{MODEL}", **made.summary}
        if not as_json:
            for text in lines_of(found):
                say(text)
        return found

    def connection(say: stepping.Say) -> Connection:
        return Connection(loaded, store, ray, wait, say)

    return stepping.make("reward", steps, loaded.notes, store, as_json, verbose, connection, show)


def lines_of(found: dict[str, Any]) -> list[str]:
    """What was measured, in words."""
    said = [f"steps     {found['steps']}, loss {found['first_loss']:.3f} -> {found['loss']:.3f}"]
    if heldout := found.get("heldout"):
        said.append(f"held out  accuracy {heldout['reward_accuracy']:.3f} on {heldout['pairs']} pairs")
    return [*said, f"model     {found['reward_model']}"]
