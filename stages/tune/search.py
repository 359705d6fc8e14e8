"""The search of a sweep, by Ray Tune: which values come next, and which trials go on."""

from __future__ import annotations

import dataclasses
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from stages.base import TrainResources
from stages.tune import trial as trials
from stages.tune.config import MODES, WIN_RATE, AshaScheduler, Dimension, MedianScheduler, SweepConfig
from stages.tune.told import FAILED, UNITS, Rungs
from stages.tune.trial import Trial

_NEVER = 1 << 30
Point = dict[str, Any]
"""A value for each setting that is varied."""


class Listener(Protocol):
    """Who is told how trials go, by their numbers."""

    def started(self, number: int) -> None: ...
    def measured(self, number: int, result: dict[str, Any]) -> None: ...
    def ended(self, number: int, result: dict[str, Any]) -> None:
        """It has come to its end, or does not go on."""
        ...

    def failed(self, number: int, reason: str) -> None: ...


def search(
    settings: SweepConfig, known: Sequence[Point], make: Callable[[int, Point], Trial], parallel: int,
    resources: TrainResources, cpus: int, listener: Listener,
) -> None:  # fmt: skip
    """Try the trials of a sweep, until all have ended or its time is over.

    Args:
        known: the points of an earlier run of the same sweep, which come first.
        make: a trial of a number (from 1) and its point.
    """
    held = _groups(resources)
    searcher = Points(
        _searcher(settings, known), lambda number, point: dataclasses.replace(make(number, point), groups=held)
    )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        # What Ray Tune writes down is of no use to a later run: the store has what continues a sweep.
        os.environ.update(TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1", TUNE_DISABLE_SIGINT_HANDLER="1")
        tuner = tune.Tuner(
            tune.with_resources(trials.run, _place(resources, cpus)),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=_scheduler(settings),
                num_samples=settings.wanted,
                max_concurrent_trials=parallel,
                time_budget_s=None if settings.minutes is None else settings.minutes * 60,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,  # else a name made of all its configuration
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=scratch,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=resources.max_failures),
                callbacks=[_Telling(listener, held)],
            ),
        )
        tuner.fit()


def rungs(settings: SweepConfig) -> Rungs:
    """When trials are measured. The scheduler wants whole numbers."""
    scheduler = settings.scheduler
    if isinstance(scheduler, AshaScheduler):
        return Rungs(tuple(scheduler.reduction**rung for rung in range(scheduler.rungs)))
    return Rungs(tuple(range(1, scheduler.measurements + 1)))


def _scheduler(settings: SweepConfig) -> TrialScheduler:
    scheduler, aim = settings.scheduler, {"metric": settings.guide, "mode": MODES[settings.guide]}
    if isinstance(scheduler, AshaScheduler):
        return AsyncHyperBandScheduler(
            time_attr=UNITS,
            **aim,
            grace_period=1,
            max_t=rungs(settings).units[-1],
            reduction_factor=scheduler.reduction,
        )
    if isinstance(scheduler, MedianScheduler):
        return MedianStoppingRule(
            time_attr=UNITS,
            **aim,
            grace_period=0,
            min_samples_required=scheduler.min_trials,
            min_time_slice=_NEVER,  # a trial that is put off would have to begin again
        )
    return FIFOScheduler()


def _searcher(settings: SweepConfig, known: Sequence[Point]) -> Searcher:
    if settings.search != "tpe":
        return _Listed(points(settings))
    aims: list[str] = [name for name in settings.objective if name != WIN_RATE] or [settings.guide]
    several = len(aims) > 1
    return OptunaSearch(
        OptunaSearch.convert_search_space(
            {name: domain(dimension) for name, dimension in sorted(settings.space.items())}
        ),
        metric=aims if several else aims[0],
        mode=[MODES[name] for name in aims] if several else MODES[aims[0]],
        points_to_evaluate=[dict(point) for point in known] or None,
        seed=settings.seed + len(known),  # else the first new points would be the first known ones
    )


def points(settings: SweepConfig) -> Iterator[Point]:
    """All points of a grid, or as many as are wanted drawn at random; the same ones each time."""
    names = sorted(settings.space)  # the order in which they are written means nothing
    draw = np.random.RandomState(settings.seed)
    if settings.combinations:
        found = list(itertools.product(*(settings.space[name].choice or () for name in names)))
        order = range(len(found)) if settings.search == "grid" else draw.permutation(len(found))[: settings.wanted]
        yield from (dict(zip(names, found[place], strict=True)) for place in order)
        return
    for _ in range(settings.wanted):
        yield {name: _plain(domain(settings.space[name]).sample(random_state=draw)) for name in names}


def domain(dimension: Dimension) -> Any:
    """A dimension as Ray Tune has it, whose ranges of whole numbers lack their upper end."""
    if dimension.choice is not None:
        return tune.choice(list(dimension.choice))
    low, high = getattr(dimension, dimension.kind)
    return getattr(tune, dimension.kind)(low, high + 1 if "int" in dimension.kind else high)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


class _Listed(Searcher):  # type: ignore[misc]  # ray has no types
    """Points that are known beforehand."""

    def __init__(self, found: Iterator[Point]) -> None:
        super().__init__()
        self._left = list(found)

    def suggest(self, _: str) -> Any:
        return self._left.pop(0) if self._left else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


class _Unsaved:
    """Ray Tune writes its parts down to continue by itself; here the store has what continues a sweep."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Points(_Unsaved, Searcher):  # type: ignore[misc]
    """Makes trials of what a search finds, and tells it what they came to."""

    def __init__(self, search: Searcher, make: Callable[[int, Point], Trial]) -> None:
        super().__init__()
        self._search, self._make = search, make
        self._count = 0

    def suggest(self, trial_id: str) -> Any:
        point = self._search.suggest(trial_id)
        if not isinstance(point, dict):
            return point
        self._count += 1
        return {"trial": self._make(self._count, {name: _plain(value) for name, value in point.items()})}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if FAILED not in result:
            self._search.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        failed = error or result is None or FAILED in result or not self._complete(result)
        self._search.on_trial_complete(trial_id, None if failed else result, failed)

    def _complete(self, result: dict[str, Any]) -> bool:
        metric = self._search.metric
        names = metric if isinstance(metric, list) else [metric] if metric else []
        return all(name in result for name in names)

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


class _Telling(_Unsaved, tune.Callback):  # type: ignore[misc]
    """Passes on what Ray Tune says, and gives back what a trial with several workers has left."""

    def __init__(self, listener: Listener, groups: Any) -> None:
        self._listener, self._groups = listener, groups

    def on_trial_start(self, *, trial: Any, **_: Any) -> None:
        self._free(trial)  # it may have been lost, and begin again
        self._listener.started(_number(trial))

    def on_trial_result(self, *, trial: Any, result: dict[str, Any], **_: Any) -> None:
        if FAILED not in result:
            self._listener.measured(_number(trial), result)

    def on_trial_complete(self, *, trial: Any, **_: Any) -> None:
        self._free(trial)
        result = trial.last_result or {}
        if FAILED in result:
            self._listener.failed(_number(trial), result[FAILED])
        else:
            self._listener.ended(_number(trial), result)

    def on_trial_error(self, *, trial: Any, **_: Any) -> None:
        self._free(trial)
        lines = str(trial.get_error() or "its process was lost").strip().splitlines()
        self._listener.failed(_number(trial), lines[-1])

    def _free(self, trial: Any) -> None:
        if self._groups is not None:
            from stages.tune import several

            several.free(self._groups, _number(trial))


def _groups(resources: TrainResources) -> Any:
    """Who notes where the workers of trials have their places, if these have several."""
    if resources.worker_range == (1, 1):
        return None
    from stages.tune import several

    return several.groups()


def _number(trial: Any) -> int:
    number: int = trial.config["trial"].number
    return number


def _place(resources: TrainResources, cpus: int) -> tune.PlacementGroupFactory:
    """What a trial takes. Of several workers it is them that take it, from inside of the trial, which only waits: a CPU
    of its own, or a part of one, could be the one that they lack."""
    if resources.worker_range != (1, 1):
        return tune.PlacementGroupFactory([{"memory": 1}])
    bundle = {"CPU": float(cpus), "GPU": resources.gpus, "memory": float(resources.memory_bytes)}
    if resources.accelerator_type:
        bundle[f"accelerator_type:{resources.accelerator_type}"] = 0.001
    labels = {"bundle_label_selector": [resources.label_selector]} if resources.label_selector else {}
    return tune.PlacementGroupFactory([{name: amount for name, amount in bundle.items() if amount}], **labels)
