"""``rondo train-reward``: the reward model of a spec, without its rounds."""

from __future__ import annotations

import json
import traceback
from datetime import UTC, datetime
from typing import Any

from clusters.local import LocalCluster
from pipelines.plan.base_model import base_step
from pipelines.plan.given import preferences
from pipelines.plan.reward import reward_step
from pipelines.plan.steps import Step, walk
from pipelines.run import console
from pipelines.run.connection import Connection
from pipelines.run.execute import reason
from pipelines.run.runner import Runner
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
    log = store.scratch / "logs" / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-reward.log"
    with console.terminal(log, verbose, to_stderr=as_json) as terminal:

        def say(text: str) -> None:
            terminal.print(text, highlight=False, markup=False, soft_wrap=True)

        lines = console.Lines(terminal, len(steps))
        connection = Connection(loaded, store, ray, wait, say)
        for note in loaded.notes:
            say(f"note: {note}")
        try:
            with lines:
                made = Runner(store, lines, connection.open).run(steps)[-1].artifact
        except Exception as failure:
            traceback.print_exception(failure)  # into the log
            say(f"failed at {reason(failure)}\nThe whole story is in {log}.")
            return 1
        except KeyboardInterrupt:
            say("interrupted; the same command continues where this one stopped")
            return 130
        finally:
            connection.close()
        found: dict[str, Any] = {"reward_model": f"{store.location}/{made.parts[0].place}/{MODEL}", **made.summary}
        if not as_json:
            for text in lines_of(found):
                say(text)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    return 0


def lines_of(found: dict[str, Any]) -> list[str]:
    """What was measured, in words."""
    said = [f"steps     {found['steps']}, loss {found['first_loss']:.3f} -> {found['loss']:.3f}"]
    if heldout := found.get("heldout"):
        said.append(f"held out  accuracy {heldout['reward_accuracy']:.3f} on {heldout['pairs']} pairs")
    return [*said, f"model     {found['reward_model']}"]
