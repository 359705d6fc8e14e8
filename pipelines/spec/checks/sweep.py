"""A spec's sweep checked against its training, and against what its objective is measured on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from pydantic import ValidationError

from pipelines.spec.checks import adapters
from pipelines.spec.models import train_of
from pipelines.spec.problems import Fault, KeyPath
from stages.core.losses import config as loss_config
from stages.train.config import TrainConfig
from stages.tune.config import WIN_RATE, Dimension, NoScheduler, SweepConfig

_SHOWN = 3
"""Values of a list that are said to be wrong."""
_BY_SCALE = ("heldout_loss", "reward_margin")
"""Objectives that are measured in a unit of their own for every beta and loss."""


def faults(values: Mapping[str, Any]) -> Iterator[Fault]:
    """What is wrong with the section ``sweep``, and with settings that change by round (``iterate.train``)."""
    train, sweep, iterate = values.get("train"), values.get("sweep"), values.get("iterate")
    if train is None:
        return
    for number in sorted(iterate.train if iterate is not None else ()):
        assert iterate is not None
        try:
            train_of(train, iterate, number)
        except ValidationError as error:
            yield from (Fault(("iterate", "train", number), text) for text in _texts(error))
    if sweep is None:
        return
    for name, dimension in sweep.space.items():
        yield from _dimension(name, dimension, train, values)
    yield from _search(sweep)
    yield from _objective(sweep, values)


def notes(values: Mapping[str, Any]) -> Iterator[str]:
    """What works but is probably not meant."""
    sweep: SweepConfig | None = values.get("sweep")
    if sweep is None:
        return
    varied = [name for name in sweep.space if name == "beta" or name.partition(".")[0] == "loss"]
    for name in sweep.objective if varied else ():
        if name in _BY_SCALE:
            yield (
                f"sweep.objective: {name} cannot be compared between values of {' and '.join(varied)}, which set its "
                "scale; reward_accuracy and win_rate can"
            )


def _dimension(name: str, dimension: Dimension, train: TrainConfig, values: Mapping[str, Any]) -> Iterator[Fault]:
    path: KeyPath = ("sweep", "space", name)
    resources = values.get("resources")
    least = resources.train.worker_range[1] if resources is not None else 1
    found: dict[str, None] = {}  # in order, each once
    for value in dimension.probes():
        try:
            changed = train.changed({name: value})
        except ValidationError as error:
            found |= dict.fromkeys(_texts(error, value))
            continue
        found |= dict.fromkeys(f"{value!r}: train.{key} {text}" for key, text in loss_config.conflicts(changed))
        found |= dict.fromkeys(f"{value!r}: {text}" for _, text in adapters.faults(changed))
        if changed.batch_size < least:
            found[f"{value!r} pairs leave some of {least} workers (resources.train.workers) without work"] = None
    most = _SHOWN if dimension.choice is not None else 1  # both ends of a range say the same
    yield from (Fault((*path, dimension.kind), text) for text in list(found)[:most])


def _texts(error: ValidationError, value: Any = None) -> Iterator[str]:
    for item in error.errors(include_url=False):
        message = item["msg"].removeprefix("Value error, ")
        shown = f"{value!r}: " if value is not None else f"{'.'.join(map(str, item['loc']))}: "
        if item["type"] in ("int_from_float", "int_type") and isinstance(value, float):
            message = "takes whole numbers; use randint: [low, high], or a list"
        yield f"{shown}{message[0].lower()}{message[1:]}"


def _search(sweep: SweepConfig) -> Iterator[Fault]:
    if sweep.search == "grid":
        for name, dimension in sweep.space.items():
            if dimension.choice is None:
                message = "a grid needs a list of values; give one, or use search: random"
                yield Fault(("sweep", "space", name, dimension.kind), message)
        if sweep.trials is not None and all(dimension.choice for dimension in sweep.space.values()):
            message = f"a grid tries all {sweep.combinations} combinations; leave it out, or use search: random"
            yield Fault(("sweep", "trials"), message)
    if sweep.search == "tpe" and not find_spec("optuna"):
        yield Fault(("sweep", "search"), "tpe needs Optuna: pip install optuna")
    if sweep.parallel is not None and sweep.parallel > sweep.wanted:
        yield Fault(("sweep", "parallel"), f"{sweep.parallel} is more than the {sweep.wanted} trials there are")


def _objective(sweep: SweepConfig, values: Mapping[str, Any]) -> Iterator[Fault]:
    """What is aimed at, and what the search and the scheduler go by, has to be measured."""
    data, preferences, prompts = values.get("data"), values.get("preferences"), values.get("prompts")
    if WIN_RATE in sweep.objective and prompts is not None and not prompts.heldout:
        yield Fault(("sweep", "objective"), "win_rate needs prompts.heldout, and a judge of the answers to them")
    if data is None or preferences is None or (data.heldout and preferences):
        return
    held_out = "held-out pairs: preferences, and data.heldout above 0 (0.1 is usual)"
    for name in sweep.objective:
        if name != WIN_RATE:
            yield Fault(("sweep", "objective"), f"{name} needs {held_out}")
    if not isinstance(sweep.scheduler, NoScheduler):
        message = f"{sweep.scheduler.use} compares trials on their way and needs {held_out}; or use none"
        yield Fault(("sweep", "scheduler"), message)
    if sweep.search == "tpe":
        yield Fault(("sweep", "search"), f"tpe learns from trials that have ended and needs {held_out}; or use random")
