"""A trial, where it runs: a configuration trained once or with several seeds, and measured on the way.

It is the same training as that of a run with these settings: its checkpoints are kept in the same place, it goes on
from what is there, and what it measured stands among its metrics.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ray import tune

from stages.base import StageError, TrainResources
from stages.io import cache
from stages.io.artifact import Artifact
from stages.io.board import board
from stages.io.filenames import METRICS
from stages.io.locks import lock
from stages.io.output import Output
from stages.io.parts import call
from stages.train.arguments import Arguments, is_measured
from stages.train.config import TrainConfig
from stages.train.kept import Kept
from stages.tune.measure import HeldOut
from stages.tune.told import FAILED, FINAL, SCORES, Row, Rungs, again, at_end, result, scores

Told = Callable[[list[Row]], None]
_PATIENCE = "TUNE_FUNCTION_THREAD_TIMEOUT_S"
"""For this long Ray Tune waits for a trial to leave a process that the next is to have."""


@dataclass(frozen=True)
class Training:
    """The ``train`` step of a trial's configuration with one seed."""

    config: TrainConfig
    inputs: Mapping[str, Artifact]
    output: Output


@dataclass(frozen=True)
class Trial:
    number: int
    trainings: tuple[Training, ...]
    heldout: HeldOut | None
    """What it is measured on; None if only the answers of its policy will be judged."""
    rungs: Rungs
    needs: tuple[str, ...]
    """Scores that it has to have, by which the search and the scheduler go."""
    resources: TrainResources
    cpus: int
    importable: tuple[str, ...]
    recorded: Row | None = None
    """What a sweep has kept of it, if it ended in an earlier command: that is told again, and nothing else is done."""
    groups: Any = None
    """Where the places of several workers are noted (``several.Groups``)."""


def run(config: Mapping[str, Any]) -> None:
    """What Ray Tune calls. The first training is measured at every share; only if it comes to its end, the other seeds
    follow, and then the mean is told."""
    trial: Trial = config["trial"]
    os.environ.setdefault(_PATIENCE, "60")
    try:
        for told in again(trial.recorded) if trial.recorded is not None else _run(trial):
            tune.report(_whole(trial, told))
    except Exception as error:
        from stages.train.single import reason

        tune.report({FAILED: reason(error)})
    finally:
        cache.release()


def _run(trial: Trial) -> Iterator[Row]:
    """What is told in the end; before that the first training tells by itself."""

    def told(rows: list[Row]) -> None:
        if not at_end(rows):
            tune.report(_whole(trial, result(trial.rungs, rows)))

    finals = [_follow(trial, trial.trainings[0], told)]
    finals += [_follow(trial, training, None) for training in trial.trainings[1:]]
    each = [scores(rows) for rows in finals]
    mean = {name: statistics.fmean(found[name] for found in each) for name in each[0]}
    spread = {name: statistics.stdev(found[name] for found in each) for name in each[0]} if len(each) > 1 else {}
    yield {**result(trial.rungs, finals[0]), **mean, SCORES: mean, "spread": spread, "each": each, FINAL: True}


def _whole(trial: Trial, told: Row) -> Row:
    """What is told, with all that the search goes by; Ray Tune ends with an error otherwise.

    Raises:
        StageError: something of that could not be measured.
    """
    if missing := [name for name in trial.needs if name not in told]:
        raise StageError(
            f"{missing[0]} could not be measured: no held-out row has both a chosen and a rejected response"
        )
    return told


def _follow(trial: Trial, training: Training, told: Told | None) -> list[Row]:
    """Tell what a training has measured before, and train on to its end; returns the rows of all its steps. Another
    run at the same training on this machine is waited for."""
    tell = told or _nobody
    with lock(training.output.store.scratch, training.output.fingerprint):
        policy = training.output.committed()  # by a run
        rows = _rows(training.output, policy)
        for number, row in enumerate(rows):
            if is_measured(row):
                tell(rows[: number + 1])
        if at_end(rows) and (trial.heldout is None or is_measured(rows[-1])):
            return rows
        if policy is not None:
            assert trial.heldout is not None
            rows[-1] |= _measure(trial, training, policy, trial.heldout)
            return rows
        _train(trial, training, told)
        return _rows(training.output, None)


def _rows(output: Output, policy: Artifact | None) -> list[Row]:
    """The steps of a training so far."""
    file = policy.path(METRICS) if policy is not None else Kept(output).newest_file(METRICS)
    return [] if file is None else [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _train(trial: Trial, training: Training, told: Told | None) -> None:
    """Train on from the last checkpoint."""
    given = (training.config, trial.resources, trial.cpus, dict(training.inputs), training.output)
    watched: dict[str, Any] = {"importable": trial.importable, "watch": trial.heldout, "finish": False}
    if _is_alone(trial):
        from stages.tune import alone

        alone.train(Arguments(*given, progress=None, **watched), told or _nobody)
        return
    from stages.tune import several

    with board(_nobody) as progress:  # how far it is, is told at its rungs
        arguments = Arguments(*given, progress=progress, **watched)
        several.train(arguments, trial.number, trial.rungs if told else None, trial.groups)


def _nobody(*_: Any) -> None:
    """Who is told nothing."""


def _measure(trial: Trial, training: Training, policy: Artifact, heldout: HeldOut) -> Row:
    """How a policy that a run has made ranks the held-out pairs."""
    given = (policy, training.config, trial.resources, trial.cpus, heldout)
    if _is_alone(trial):
        from stages.tune.alone import measure

        return measure(*given)
    found: Row = call("stages.tune.alone:measure", *given, resources=trial.resources)
    return found


def _is_alone(trial: Trial) -> bool:
    """Whether this process trains itself: it has what one worker asks for."""
    return trial.resources.worker_range == (1, 1)
