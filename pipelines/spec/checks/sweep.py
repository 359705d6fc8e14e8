"""A spec's sweep checked against its training, and against what its objective is measured on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from pydantic import ValidationError

from pipelines.spec.checks import adapters
from pipelines.spec.models import train_of
from pipelines.spec.problems import Fault, KeyPath
from stages.core.losses import config as loss_config
from stages.train.config import TrainConfig
from stages.tune.config import WIN_RATE, NoScheduler, SweepConfig

_PROBES = 64
_SHOWN = 3
"""Values of a list that are said to be wrong."""
_BY_SCALE = ("heldout_loss", "reward_margin")
"""Objectives that are measured in a unit of their own for every beta and loss."""


def faults(values: Mapping[str, Any]) -> Iterator[Fault]:
    """What is wrong with the section ``sweep``, and with settings that change by round (``iterate.train``)."""
    train, sweep, iterate = values.get("train"), values.get("sweep"), values.get("iterate")
    if train is None:
        return
    rounds = values.get("rounds", 1)
    for number in sorted(iterate.train if iterate is not None else ()):
        assert iterate is not None
        try:
            train_of(train, iterate, number)
        except ValidationError as error:
            for item in error.errors(include_url=False):
                yield Fault(("iterate", "train", number), f"{'.'.join(map(str, item['loc']))}: {_text(item)}")
        if number > rounds:
            yield Fault(("iterate", "train", number), f"there is no round {number} (rounds: {rounds})")
    if sweep is None:
        return
    yield from _fit(sweep, train, values)
    yield from _search(sweep)
    yield from _objective(sweep, values)
    yield from _divergence(sweep, train)
    if sweep.every is not None and sweep.every >= rounds:
        yield Fault(("sweep", "every"), f"{sweep.every} rounds after the first there is none (rounds: {rounds})")


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


def _fit(sweep: SweepConfig, train: TrainConfig, values: Mapping[str, Any]) -> Iterator[Fault]:
    """Values that do not fit their setting, or not together with those of another under the same name (a loss and its
    options)."""
    resources = values.get("resources")
    least = resources.train.worker_range[1] if resources is not None else 1
    together: dict[str, list[str]] = {}
    for name in sorted(sweep.space, key=lambda name: name.count(".")):
        together.setdefault(name.partition(".")[0], []).append(name)
    for names in together.values():
        path: KeyPath = ("sweep", "space", names[-1], sweep.space[names[-1]].kind)
        found: dict[str, None] = {}  # in order, each once
        for point in itertools.islice(itertools.product(*(sweep.space[name].probes() for name in names)), _PROBES):
            chosen = dict(zip(names, point, strict=True))
            shown = (
                repr(point[0]) if len(names) == 1 else ", ".join(f"{name} {value!r}" for name, value in chosen.items())
            )
            found |= dict.fromkeys(f"{shown}: {text}" for text in _misfit(train, chosen, least))
        lists = all(sweep.space[name].choice is not None for name in names)
        # Both ends of a range say the same.
        yield from (Fault(path, text) for text in list(found)[: _SHOWN if lists else 1])


def _misfit(train: TrainConfig, chosen: Mapping[str, Any], least: int) -> Iterator[str]:
    try:
        changed = train.changed(chosen)
    except ValidationError as error:
        floats = any(isinstance(value, float) for value in chosen.values())
        yield from (_text(item, floats) for item in error.errors(include_url=False))
        return
    yield from (f"train.{key} {text}" for key, text in loss_config.conflicts(changed))
    yield from (text for _, text in adapters.faults(changed))
    if changed.batch_size < least:
        yield f"leaves some of {least} workers (resources.train.workers) without work"


def _text(item: Any, floats: bool = False) -> str:
    if item["type"] in ("int_from_float", "int_type") and floats:
        return "takes whole numbers; use randint: [low, high], or a list"
    message = str(item["msg"]).removeprefix("Value error, ")
    return f"{message[0].lower()}{message[1:]}"


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
    if sweep.search != "grid" and sweep.trials is not None and 0 < sweep.combinations < sweep.trials:
        message = f"{sweep.trials} is more than the {sweep.combinations} combinations there are; use search: grid"
        yield Fault(("sweep", "trials"), message)
    if sweep.parallel is not None and sweep.parallel > sweep.wanted:
        yield Fault(("sweep", "parallel"), f"{sweep.parallel} is more than the {sweep.wanted} trials there are")


def _divergence(sweep: SweepConfig, train: TrainConfig) -> Iterator[Fault]:
    """``kl`` needs a reference, whatever the loss."""
    if "kl" not in sweep.objective:
        return
    losses = sweep.space["loss"].choice if "loss" in sweep.space else None
    for value in losses or (None,):
        try:
            changed = train if value is None else train.changed({"loss": value})
        except ValidationError:
            continue  # said where the value stands
        if not loss_config.needs_reference(changed):
            names = " and ".join(loss.use for loss in changed.loss)
            yield Fault(("sweep", "objective"), f"kl is the distance to the reference, and {names} has none")


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
