"""Axes for the values of a parameter: numbers as they are or as powers of ten, everything else as named places."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from pipelines.report import sweep_values as values
from pipelines.report.sweep_values import Record, Trial

_NAME = 20
_FEW = 6
_UNSET = "not set"


@dataclass(frozen=True)
class Axis:
    """Where each trial stands on a parameter's axis. Ticks are None where plotly's own are right; labels differ."""

    name: str
    places: list[float]
    ticks: list[float] | None
    labels: list[str] | None
    constant: bool


def axis(record: Record, name: str, shown: Sequence[Trial]) -> Axis:
    """The axis of a parameter for these trials. A log axis holds the logarithms, so that any plot can draw it."""
    points = [trial.get("point") or {} for trial in shown]
    numbers = [values.finite(point.get(name)) for point in points]
    known = [number for number in numbers if number is not None]
    if not known or len(known) < len(points):
        return _named(name, [values.exact(point[name]) if name in point else _UNSET for point in points])
    constant = len(set(known)) == 1
    if values.is_log(record, name) and min(known) > 0:
        places = [math.log10(number) for number in known]
        ticks = _few(places) or _powers(min(places), max(places))
        return Axis(name, places, ticks, _told_apart([10**tick for tick in ticks]), constant)
    ticks = _few(known)
    return Axis(name, known, ticks or None, _told_apart(ticks) if ticks else None, constant)


def plain(text: str) -> str:
    """Text for plotly, which reads a few tags in the text that it draws: none of the data's are."""
    return html.escape(text, quote=False)


def cut(text: str) -> str:
    """Text that fits beside an axis."""
    line = " ".join(text.split())
    return line if len(line) <= _NAME else f"{line[: _NAME - 1]}…"


def _named(name: str, texts: list[str]) -> Axis:
    order = sorted(set(texts), key=_natural)
    labels: list[str] = []
    for text in order:
        label = cut(text)
        # Parallel coordinates merge ticks of one name, so values that begin alike are told apart.
        labels.append(label if label not in labels else f"{label} ({len(labels) + 1})")
    return Axis(name, [float(order.index(text)) for text in texts], [float(i) for i in range(len(order))], labels,
                len(order) == 1)  # fmt: skip


def _natural(text: str) -> tuple[bool, float, str]:
    """Numbers among names stand first, by size."""
    try:
        number = float(text)
    except ValueError:
        return True, 0.0, text
    return (False, number, text) if math.isfinite(number) else (True, 0.0, text)


def _few(places: list[float]) -> list[float]:
    """The values themselves as ticks, if they are few and do not crowd each other; otherwise none."""
    order = sorted(set(places))
    room = (order[-1] - order[0]) / 16
    crowded = any(after - before < room for before, after in pairwise(order))
    return [] if len(order) > _FEW or crowded else order


def _powers(low: float, high: float) -> list[float]:
    """Ticks at powers of ten; with too few of them also between those, or else at both ends."""
    first, last = math.floor(low), math.ceil(high)
    step = max(1, math.ceil((last - first) / 8))
    edge = 1e-9
    for mantissas in ((1,), (1, 3), (1, 2, 5)):
        ticks = [
            power + math.log10(mantissa)
            for power in range(first, last + 1, step if mantissas == (1,) else 1)
            for mantissa in mantissas
        ]
        inside = [tick for tick in ticks if low - edge <= tick <= high + edge]
        if len(inside) >= 3:
            return inside
    return [low, high]


def _told_apart(numbers: list[float]) -> list[str]:
    """Short labels, longer ones where two of them would be the same."""
    labels = [_label(number, 3) for number in numbers]
    return labels if len(set(labels)) == len(labels) else [_label(number, 12) for number in numbers]


def _label(number: float, digits: int) -> str:
    # Whole numbers as one writes them: 1024, not 1.02e+03.
    if number.is_integer() and abs(number) < 1e6:
        return str(int(number))
    mantissa, _, exponent = f"{number:.{digits}g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa
