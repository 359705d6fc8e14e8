"""What Ray Tune is told of a trial: what it measured, and how far it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stages.train.arguments import MEASURED, is_measured

Row = dict[str, Any]
NAMES = {"loss": "heldout_loss", "reward_accuracy": "reward_accuracy", "reward_margin": "reward_margin", "kl": "kl"}
"""What is measured, as the ranking of held-out pairs and as a sweep calls it."""
SHARE, UNITS, FAILED, FINAL, SCORES = "share", "units", "failed", "final", "scores"
_POINTS = 200
"""Of a training curve."""


@dataclass(frozen=True)
class Rungs:
    """When a trial is measured: after so many units of its training, which the scheduler counts. The last are all."""

    units: tuple[int, ...]

    def steps(self, steps: int) -> list[int]:
        """After which of so many steps that is."""
        return [max(1, round(units * steps / self.units[-1])) for units in self.units]

    def reached(self, step: int, steps: int) -> int:
        """The units of the last one that a training has come to; 0 before the first."""
        return max((units for at, units in zip(self.steps(steps), self.units, strict=True) if at <= step), default=0)


def result(rungs: Rungs, rows: Sequence[Row]) -> Row:
    """What a sweep is told of a training so far, by the rows of its steps."""
    if not rows:
        return {SHARE: 0.0, UNITS: 0, SCORES: {}, "curve": [], "training": []}
    step, steps = int(rows[-1]["step"]), int(rows[-1]["steps"])
    curve = [
        {SHARE: row["step"] / steps, UNITS: rungs.reached(int(row["step"]), steps), **scores([row])}
        for row in rows
        if is_measured(row)
    ]
    stride = -(-len(rows) // _POINTS)
    training = [{name: row[name] for name in ("step", "steps", "loss", "reward_accuracy")} for row in rows[::stride]]
    measured = scores(rows)
    return {
        SHARE: step / steps, UNITS: rungs.reached(step, steps), **measured, SCORES: measured, "curve": curve,
        "training": training,
    }  # fmt: skip


def scores(rows: Sequence[Row]) -> dict[str, float]:
    """What was measured last, as a sweep calls it."""
    row = next((row for row in reversed(rows) if is_measured(row)), {})
    return {ours: row[MEASURED + name] for name, ours in NAMES.items() if MEASURED + name in row}


def again(recorded: Row) -> Iterator[Row]:
    """What was told of a trial that has ended, by what a sweep has kept of it (``pipelines.sweep.record``)."""
    done, curve = recorded["status"] == "done", recorded["curve"]
    for point in curve[:-1] if done else curve:
        yield {**point, SCORES: {name: value for name, value in point.items() if name not in (SHARE, UNITS)}}
    if done:
        last = curve[-1] if curve else {SHARE: 1.0, UNITS: 0}
        yield {**last, **recorded[SCORES], SCORES: recorded[SCORES], FINAL: True}


def at_end(rows: Sequence[Row]) -> bool:
    return bool(rows) and rows[-1]["step"] == rows[-1]["steps"]
