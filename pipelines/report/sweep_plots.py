"""The plots of a sweep as plotly's JSON. Each comes with a title and a sentence that says what to read off it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, NamedTuple

from pipelines.report import sweep_values as values
from pipelines.report.sweep_axes import Axis, axis, cut, plain
from pipelines.report.sweep_values import Record, Trial

Spot = tuple[float | None, float | None]
# Middle tones, which stand out from light and from dark paper, and which the colour-blind tell apart.
_BEST, _MIDDLE, _WORST = "#3f83d9", "#8d93a0", "#cf7331"
_MOST_POINTS = 400


class _Kind(NamedTuple):
    """How trials are drawn by what became of them."""

    label: str
    symbol: str
    colour: str
    dash: str


_KINDS = {
    "winner": _Kind("winner", "star", _BEST, "solid"),
    "done": _Kind("finished", "circle", _MIDDLE, "solid"),
    "stopped": _Kind("stopped early", "diamond-open", _WORST, "dot"),
    "other": _Kind("not finished", "x-thin-open", _MIDDLE, "dash"),
}


@dataclass(frozen=True)
class Figure:
    """One plot: its title, what to read off it, and plotly's data and layout."""

    title: str
    says: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """Plots of one kind, and a sentence for each that has nothing to show."""

    title: str
    figures: list[Figure] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def sections(record: Record) -> list[Section]:
    """All plots of the sweep; a Pareto front only where there are several objectives."""
    goals = values.objectives(record)
    several = [pareto(record)] if len(goals) > 1 else []
    return [parallel(record), by_parameter(record), *several, heldout_curves(record), training_curves(record)]


def parallel(record: Record) -> Section:
    """Every trial as a line through its values, coloured by the first objective."""
    section = Section("All trials at once")
    scored, goal, better = _scored(record)
    if len(scored) < 2 or goal is None:
        section.left_out.append(f"Lines through the values of all trials need two trials with a {goal or 'score'}.")
        return section
    colours = [values.score(trial, goal) or 0.0 for trial in scored]
    low, high = min(colours), max(colours)
    axes = [_dimension(axis(record, name, scored)) for name in values.parameters(record)]
    for name, _ in values.objectives(record):
        reached = [values.score(trial, name) for trial in scored]
        known = [number for number in reached if number is not None]
        if len(known) == len(reached):  # a line has to pass through every axis
            axes.append(_dimension(Axis(name, known, None, None, len(set(known)) == 1)))
    scale = [_WORST, _MIDDLE, _BEST] if better else [_BEST, _MIDDLE, _WORST]
    line = {
        "color": colours, "colorscale": [[i / 2, colour] for i, colour in enumerate(scale)], "showscale": True,
        "cmin": low if low < high else low - 0.5, "cmax": high if low < high else high + 0.5,
        "colorbar": {"title": {"text": plain(goal)}, "thickness": 12, "outlinewidth": 0},
    }  # fmt: skip
    layout = {"height": 420, "margin": {"l": 70, "r": 30, "t": 60, "b": 40}}
    says = (
        f"Each line is one of {len(scored)} trials, blue where {goal} is good and orange where it is bad; drag along "
        "an axis to see only the trials in that range."
    )
    section.figures.append(
        Figure("Values and score", says, [{"type": "parcoords", "dimensions": axes, "line": line}], layout, wide=True)
    )
    return section


def by_parameter(record: Record) -> Section:
    """The first objective against each parameter."""
    scored, goal, better = _scored(record)
    section = Section(f"{goal or 'Score'} by parameter")
    if not scored or goal is None:
        section.left_out.append(f"No trial has a {goal or 'score'} yet.")
        return section
    if len(scored) == 1:
        section.left_out.append(f"Only trial {scored[0].get('number')} has a {goal}, so there is nothing to compare.")
        return section
    for name in values.parameters(record):
        places = axis(record, name, scored)
        if places.constant:
            first = values.shown((scored[0].get("point") or {}).get(name))
            section.left_out.append(f"{name} is {cut(first)} in every trial with a {goal}.")
            continue
        top = values.best_first(record)[0]
        value = cut(values.shown((top.get("point") or {}).get(name), 4))
        says = (
            f"{'Higher' if better else 'Lower'} is better; the best trial, {top.get('number')}, has {name} = {value}. "
            "A clear slope or hump says that the parameter matters."
        )
        spots = dict(zip([trial.get("number") for trial in scored], places.places, strict=True))
        data = _dots(record, scored, lambda trial, spots=spots: spots[trial.get("number")], goal)
        layout = _layout(name, goal)
        layout["xaxis"] |= _ticks(places)
        section.figures.append(Figure(f"{goal} by {name}", says, data, layout))
    return section


def pareto(record: Record) -> Section:
    """Each objective against each other one, the trials of the front marked."""
    section = Section("Trade-off between objectives")
    goals = values.objectives(record)
    front = set(record.get("pareto") or ())
    for (across, more_across), (up, more_up) in combinations(goals, 2):
        both = [t for t in values.trials(record) if None not in (values.score(t, across), values.score(t, up))]
        if not both:
            section.left_out.append(f"No trial has both {across} and {up}.")
            continue
        data = _dots(record, both, lambda trial, name=across: values.score(trial, name), up)
        marked = sorted(
            (trial for trial in both if trial.get("number") in front), key=lambda t: values.score(t, across) or 0.0
        )
        if marked:
            # With three objectives the front is a surface, and a line through its points would say nothing.
            line = {"mode": "lines+markers", "line": {"color": _BEST, "dash": "dot"}} if len(goals) == 2 else {}
            data.append({
                "type": "scatter", "mode": "markers", "name": "Pareto front", "hoverinfo": "skip",
                "x": [values.score(trial, across) for trial in marked],
                "y": [values.score(trial, up) for trial in marked],
                "marker": {"symbol": "circle-open", "size": 16, "color": _BEST, "line": {"width": 2}}, **line,
            })  # fmt: skip
        ringed = ", ".join(str(trial.get("number")) for trial in marked) or "none yet"
        says = (
            f"{'More' if more_across else 'Less'} {across} and {'more' if more_up else 'less'} {up} is better; "
            f"no trial beats a ringed one in every objective ({ringed})."
        )
        section.figures.append(Figure(f"{up} against {across}", says, data, _layout(across, up), wide=True))
    return section


def heldout_curves(record: Record) -> Section:
    """Each objective on the held-out pairs, by the share of the training that is done."""
    section = Section("Learning curves on held-out pairs")
    for name, better in values.objectives(record):
        curves = [(trial, _pairs(trial.get("curve"), "share", name)) for trial in values.trials(record)]
        layout = _layout("share of the training", name)
        layout["xaxis"] |= {"tickformat": ".0%", "rangemode": "tozero"}
        data = _lines(record, curves, "lines+markers")
        if not data:
            section.left_out.append(f"No trial has measured {name} on the way.")
            continue
        says = (
            f"{name} of each trial as it trains, {'higher' if better else 'lower'} is better; "
            "a line that ends early was stopped, failed or still runs."
        )
        section.figures.append(Figure(f"{name} by share of the training", says, data, layout, wide=True))
    return section


def training_curves(record: Record) -> Section:
    """The loss on the training pairs, step by step."""
    section = Section("Training loss")
    curves = [(trial, _thin(_pairs(trial.get("training"), "step", "loss"))) for trial in values.trials(record)]
    data = _lines(record, curves, "lines")
    if data:
        says = "Training loss of each trial by step; a line that jumps or rises points at too high a learning rate."
        section.figures.append(Figure("Training loss by step", says, data, _layout("step", "loss"), wide=True))
    else:
        section.left_out.append("No trial has taken a training step yet.")
    return section


def _scored(record: Record) -> tuple[list[Trial], str | None, bool]:
    """The trials that have the first objective's score, its name, and whether more of it is better."""
    goals = values.objectives(record)
    if not goals:
        return [], None, True
    name, better = goals[0]
    return [trial for trial in values.trials(record) if values.score(trial, name) is not None], name, better


def _kind(record: Record, trial: Trial) -> str:
    if record.get("winner") is not None and trial.get("number") == record["winner"]:
        return "winner"
    status = str(trial.get("status"))
    return status if status in ("done", "stopped") else "other"


def _kinds(record: Record) -> list[tuple[str, _Kind]]:
    """The kinds of trials in the order in which they are drawn: the winner, or who leads so far, comes last, on top."""
    kinds = dict(_KINDS)
    if record.get("status") == "running":
        kinds["winner"] = kinds["winner"]._replace(label="best so far")
    return list(reversed(kinds.items()))


def _hover(record: Record, trial: Trial) -> str:
    """What a trial says under the pointer; the data's text is escaped, the breaks between lines are ours."""
    lines = [f"trial {trial.get('number')}: {trial.get('status')}"]
    lines += [f"{name} = {cut(values.shown(value))}" for name, value in (trial.get("point") or {}).items()]
    for name, _ in values.objectives(record):
        if (number := values.score(trial, name)) is not None:
            wide = values.spread(trial, name)
            lines.append(f"{name} {number:.4g}" + ("" if wide is None else f" ± {wide:.2g}"))
    return "<br>".join(plain(line) for line in lines)


def _dots(record: Record, shown: Sequence[Trial], place: Any, name: str) -> list[dict[str, Any]]:
    """One trace for each kind of trial."""
    data = []
    for kind, (label, symbol, colour, _) in _kinds(record):
        some = [trial for trial in shown if _kind(record, trial) == kind]
        if some:
            data.append({
                "type": "scatter", "mode": "markers", "name": label, "hoverinfo": "text",
                "x": [place(trial) for trial in some], "y": [values.score(trial, name) for trial in some],
                "text": [_hover(record, trial) for trial in some],
                "error_y": {"array": [values.spread(t, name) or 0.0 for t in some], "color": colour, "thickness": 1},
                "marker": {"symbol": symbol, "color": colour, "size": 14 if kind == "winner" else 9,
                           "line": {"width": 2 if symbol.endswith("open") else 0, "color": colour}},
            })  # fmt: skip
    return data


def _lines(record: Record, curves: Sequence[tuple[Trial, list[Spot]]], mode: str) -> list[dict[str, Any]]:
    """One line for each trial with a point to draw; the legend names each kind once."""
    data, named = [], set()
    for kind, (label, _, colour, dash) in _kinds(record):
        for trial, points in curves:
            if _kind(record, trial) == kind and any(None not in point for point in points):
                data.append({
                    "type": "scatter", "name": label, "legendgroup": kind,
                    "showlegend": kind not in named, "hoverinfo": "text", "hovertext": _hover(record, trial),
                    "mode": mode if len(points) > 1 else "markers",
                    "x": [x for x, _ in points], "y": [y for _, y in points],
                    "line": {"color": colour, "dash": dash, "width": 3 if kind == "winner" else 1.5},
                    "marker": {"size": 6}, "opacity": 1 if kind == "winner" else 0.8,
                })  # fmt: skip
                named.add(kind)
    return data


def _pairs(entries: Iterable[Mapping[str, Any]] | None, across: str, up: str) -> list[Spot]:
    return [(values.finite(entry.get(across)), values.finite(entry.get(up))) for entry in entries or ()]


def _thin(points: list[Spot]) -> list[Spot]:
    """At most some hundred points of a long training, the last one always: more cannot be seen and fill the page."""
    every = -(-len(points) // _MOST_POINTS)
    return points if every <= 1 else [*points[:-1:every], points[-1]]


def _dimension(places: Axis) -> dict[str, Any]:
    low, high = min(places.places), max(places.places)
    dimension: dict[str, Any] = {"label": plain(cut(places.name)), "values": places.places}
    if places.constant:  # a line, not an axis of no length
        low, high = low - 0.5, high + 0.5
    dimension["range"] = [low, high]
    if places.ticks is not None:
        dimension |= {"tickvals": places.ticks, "ticktext": places.labels}
    return dimension


def _ticks(places: Axis) -> dict[str, Any]:
    if places.ticks is None or places.labels is None:
        return {}
    edge = 0.05 * (max(places.places) - min(places.places))
    return {
        "tickvals": places.ticks,
        "ticktext": [plain(label) for label in places.labels],
        "zeroline": False,
        "ticklabeloverflow": "allow",
        "range": [min(places.places) - edge, max(places.places) + edge],
    }


def _layout(across: str, up: str) -> dict[str, Any]:
    return {
        "height": 320,
        "margin": {"l": 60, "r": 15, "t": 30, "b": 50},
        "xaxis": {"title": {"text": plain(across)}, "type": "linear"},
        "yaxis": {"title": {"text": plain(up)}, "type": "linear"},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "hovermode": "closest",
    }
