"""A trial, where it runs: a configuration trained once or with several seeds, and measured on the way.

It is the same training as that of a run with these settings: its checkpoints are kept in the same place, it goes on
from what is there, and what it measured stands among its metrics.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune

from stages.base import StageError, TrainResources
from stages.io import cache
from stages.io.artifact import Artifact
from stages.io.board import board
from stages.io.filenames import METRICS
from stages.io.locks import lock
from stages.io.output import Output
from stages.train.arguments import Arguments, is_measured
from stages.train.config import TrainConfig
from stages.train.kept import Kept
from stages.tune.measure import HeldOut
from stages.tune.told import FAILED, FINAL, SCORES, Row, Rungs, at_end, result, scores

Told = Callable[[list[Row]], None]
_PATIENCE = "TUNE_FUNCTION_THREAD_TIMEOUT_S"
"""For this long Ray Tune waits for a trial to leave a process that the next is to have."""


@dataclass(frozen=True)
class Training:
    """The ``train`` step of a trial's configuration with one seed."""

    config: TrainConfig
    inputs: Mapping[str, Artifact]
    output: Output
    policy: Artifact | None
    """What it made, if it was run before."""


@dataclass(frozen=True)
class Trial:
    number: int
    trainings: tuple[Training, ...]
    heldout: HeldOut | None
    """What it is measured on; None if only the answers of its policy will be judged."""
    rungs: Rungs
    resources: TrainResources
    cpus: int
    importable: tuple[str, ...]
    over: bool
    """It had ended in an earlier run of the sweep: what it measured is told again, and it does not go on."""


def run(config: Mapping[str, Any]) -> None:
    """What Ray Tune calls. The first training is measured at every share; only if it comes to its end, the other seeds
    follow, and then the mean is told."""
    trial: Trial = config["trial"]
    os.environ.setdefault(_PATIENCE, "60")
    try:
        _run(trial)
    except Exception as error:
        from stages.train.single import reason

        tune.report({FAILED: reason(error)})
    finally:
        cache.release()


def _run(trial: Trial) -> None:
    first = trial.trainings[0]

    def told(rows: list[Row]) -> None:
        if not at_end(rows):
            tune.report(result(trial.rungs, rows))

    finals = [_follow(trial, first, told)]
    if not at_end(finals[0]):  # it had been ended before
        tune.report(result(trial.rungs, finals[0]))
        return
    finals += [_follow(trial, training, _nobody) for training in trial.trainings[1:]]
    each = [scores(rows) for rows in finals]
    mean = {name: statistics.fmean(found[name] for found in each) for name in each[0]}
    spread = {name: statistics.stdev(found[name] for found in each) for name in each[0]} if len(each) > 1 else {}
    tune.report({**result(trial.rungs, finals[0]), **mean, SCORES: mean, "spread": spread, "each": each, FINAL: True})


def _follow(trial: Trial, training: Training, told: Told) -> list[Row]:
    """Tell what a training has measured before, and train on to its end; returns the rows of all its steps. Another
    run at the same training on this machine is waited for."""
    with _locked(training):
        rows = _rows(training)
        for number, row in enumerate(rows):
            if is_measured(row):
                told(rows[: number + 1])
        if trial.over or (at_end(rows) and (trial.heldout is None or is_measured(rows[-1]))):
            return rows
        if training.policy is not None:
            assert trial.heldout is not None
            rows[-1] |= _measure(trial, training, trial.heldout)
            return rows
        return _train(trial, training, told) or _rows(training)


def _nobody(*_: Any) -> None:
    """Told of the other seeds' trainings."""


def _locked(training: Training) -> AbstractContextManager[bool]:
    return lock(training.output.store.scratch, training.output.fingerprint)


def _rows(training: Training) -> list[Row]:
    """The steps of a training so far."""
    if training.policy is not None:
        text = training.policy.path(METRICS).read_text(encoding="utf-8")
    elif (file := Kept(training.output).newest_file(METRICS)) is not None:
        text = file.read_text(encoding="utf-8")
    else:
        return []
    return [json.loads(line) for line in text.splitlines()]


def _train(trial: Trial, training: Training, told: Told) -> list[Row] | None:
    """Train on from the last checkpoint; returns the rows of all steps, or None where others have them."""
    resources, output = trial.resources, training.output
    inputs = dict(training.inputs)
    given = (training.config, resources, trial.cpus, inputs, output)
    watched: dict[str, Any] = {"importable": trial.importable, "watch": trial.heldout, "finish": False}
    if resources.worker_range == (1, 1):
        from stages.tune.alone import train

        return train(Arguments(*given, progress=None, **watched), told)
    from stages.train import distributed
    from stages.tune.several import Reporting

    with board(_nobody) as progress:
        arguments = Arguments(*given, progress=progress, **watched)
        try:
            distributed.fit(arguments, [Reporting(trial.rungs, training is trial.trainings[0])])
        except StageError as error:
            raise StageError(ray.get(progress.failure.remote()) or str(error)) from error
        if (failure := ray.get(progress.failure.remote())) is not None:
            raise StageError(failure)
    return None


def _measure(trial: Trial, training: Training, heldout: HeldOut) -> Row:
    """How a policy that a run has made ranks the held-out pairs."""
    from stages.tune.alone import measure

    assert training.policy is not None
    return measure(training.policy, training.config, trial.resources, trial.cpus, heldout)
