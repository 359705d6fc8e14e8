"""A trial with several workers: Ray Train inside a trial of Ray Tune, joined as Ray's documentation joins them."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import ray
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.tune.integration.ray_train import TuneReportCallback

from stages.io.board import here
from stages.train.arguments import Arguments
from stages.train.train import fit
from stages.tune.told import Rungs, at_end, result


def train(arguments: Arguments, number: int, rungs: Rungs | None, groups: Any) -> None:
    """Train trial ``number`` to its end; with ``rungs`` Ray Tune is told what was measured before it.

    Raises:
        StageError: the training failed.
    """
    fit(arguments, [] if rungs is None else [_Reporting(rungs)], [_Noting(groups, number)])


class Groups:
    """The places of the workers of each trial. A trial that is ended early leaves them reserved: Ray ends the process
    that would give them back, and what a process has reserved stays until the driver's end."""

    def __init__(self) -> None:
        self._groups: dict[int, list[Any]] = defaultdict(list)

    def note(self, number: int, group: Any) -> None:
        self._groups[number].append(group)

    def take(self, number: int) -> list[Any]:
        return self._groups.pop(number, [])


def groups() -> Any:
    """An actor for them, on the driver's machine."""
    return ray.remote(num_cpus=0, scheduling_strategy=here())(Groups).remote()


def free(held: Any, number: int) -> None:
    """Give back the places of a trial's workers."""
    for group in ray.get(held.take.remote(number)):
        ray.util.remove_placement_group(group)


class _Noting(WorkerGroupCallback):  # type: ignore[misc]  # ray has no types
    """Notes where the workers of a trial have their places."""

    def __init__(self, held: Any, number: int) -> None:
        self._held, self._number = held, number

    def after_worker_group_start(self, worker_group: Any) -> None:
        group = worker_group.get_worker_group_state().placement_group_handle.placement_group
        ray.get(self._held.note.remote(self._number, group))


class _Reporting(TuneReportCallback):  # type: ignore[misc]
    """Tells Ray Tune what the workers have measured. The end is told by the trial itself, after all seeds."""

    def __init__(self, rungs: Rungs) -> None:
        super().__init__()
        self._rungs = rungs

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        rows = metrics[0]["rows"]
        if not at_end(rows):
            super().after_report(run_context, [result(self._rungs, rows)], checkpoint)
