"""What the page and the tables of a sweep have in common: names, order and shown values, read from the record."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

Record = Mapping[str, Any]
Trial = Mapping[str, Any]


def finite(value: object) -> float | None:
    """The value if it is a number one can draw or compare; JSON's null, NaN and true are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def exact(value: object) -> str:
    """A value in full, as one would write it in a command."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def encodable(text: str) -> str:
    """The text without halves of characters: a file's name in an error may hold some, and no file can."""
    return text.encode("utf-8", "replace").decode("utf-8")


def shown(value: object, digits: int = 5) -> str:
    """A value for people: numbers that are not whole are rounded."""
    return f"{value:.{digits}g}" if isinstance(value, float) else exact(value)


def score(trial: Trial, name: str) -> float | None:
    """The trial's score, or None where it has none that can be compared."""
    return finite((trial.get("scores") or {}).get(name))


def spread(trial: Trial, name: str) -> float | None:
    """The standard deviation of a score over seeds, if there were several."""
    return finite((trial.get("spread") or {}).get(name))


def objectives(record: Record) -> list[tuple[str, bool]]:
    """Each objective's name, and whether more of it is better."""
    return [(str(item["name"]), item.get("mode") != "min") for item in record.get("objective") or ()]


def trials(record: Record) -> list[Trial]:
    """All trials, in the order in which they were started."""
    return list(record.get("trials") or ())


def parameters(record: Record) -> list[str]:
    """The names of all parameters: those of the search, then any that only a point has."""
    points = (name for trial in trials(record) for name in trial.get("point") or ())
    return _unique([*(record.get("parameters") or ()), *points])


def scores(record: Record) -> list[str]:
    """The names of all scores, the objectives first."""
    measured = (name for trial in trials(record) for name in trial.get("scores") or ())
    return _unique([*(name for name, _ in objectives(record)), *measured])


def is_log(record: Record, name: str) -> bool:
    """Whether the search took the parameter's logarithm."""
    return bool(((record.get("parameters") or {}).get(name) or {}).get("log"))


def best_first(record: Record) -> list[Trial]:
    """Trials by the first objective: the finished, then those that have a score so far, then the others.

    A score at a third of the training does not compare with one at its end, so a stopped trial never stands above.
    """
    goal = next(iter(objectives(record)), None)

    def place(trial: Trial) -> tuple[int, float, int]:
        value = score(trial, goal[0]) if goal else None
        number = int(trial.get("number") or 0)
        if value is None or goal is None:
            return 2, 0.0, number
        return (0 if trial.get("status") == "done" else 1), -value if goal[1] else value, number

    return sorted(trials(record), key=place)


def winner(record: Record) -> Trial | None:
    """The trial that won, or leads so far."""
    number = record.get("winner")
    if number is None:
        return None
    return next((trial for trial in trials(record) if trial.get("number") == number), None)


def _unique(names: Iterable[object]) -> list[str]:
    return list(dict.fromkeys(str(name) for name in names))
