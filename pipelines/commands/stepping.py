"""Commands that run some steps outside of a run: what they show on the way, and how they end."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from rich.console import Console

from pipelines.plan.steps import Step
from pipelines.run import console
from pipelines.run.execute import reason
from pipelines.run.runner import Runner, StepFailed, StepResult
from pipelines.run.store import ArtifactStore

Say = Callable[[str], None]


class Ray(Protocol):
    """The way to Ray; opened by the first step that is not committed."""

    def open(self) -> None: ...

    def close(self) -> None: ...


class NoRay:
    """For steps that are not worth a cluster."""

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass


def make(
    kind: str, steps: Sequence[Step], notes: Sequence[str], store: ArtifactStore, as_json: bool, verbose: bool,
    ray: Callable[[Say], Ray], show: Callable[[Sequence[StepResult], Console, Say], dict[str, Any]],
) -> int:  # fmt: skip
    """Make the steps, then ``show`` what came of them and return it, for ``--json``. The log is named by the ``kind``.
    Returns the exit code."""
    log = store.scratch / "logs" / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{kind}.log"
    with console.terminal(log, verbose, to_stderr=as_json) as terminal:

        def say(text: str) -> None:
            terminal.print(text, highlight=False, markup=False, soft_wrap=True)

        lines = console.Lines(terminal, len(steps))
        connection = ray(say)
        for note in notes:
            say(f"note: {note}")
        try:
            with lines:
                results = Runner(store, lines, connect=connection.open).run(list(steps))
        except Exception as failure:
            traceback.print_exception(failure)  # into the log
            where = "failed at " if isinstance(failure, StepFailed) else "failed: "
            say(f"{where}{reason(failure)}\nThe whole story is in {log}.")
            return 1
        except KeyboardInterrupt:
            say("interrupted; the same command continues where this one stopped")
            return 130
        finally:
            connection.close()
        found = show(results, terminal, say)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    return 0
