"""The plot of ``benchmarks.frontier``: mean score against KL, a line for each series from the base model on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# The colour-blind tell these apart, and the symbols differ too.
_LOOKS = {
    "rondo": ("Rondo's settings (LoRA)", "#3f83d9", "circle"),
    "trl": ("TRL's default settings", "#cf7331", "diamond"),
}


def figure(report: Mapping[str, Any]) -> dict[str, Any]:
    """plotly's ``data`` and ``layout``. Lines start at the base model and follow the falling beta."""
    base = report["base"]
    data = [_trace(name, base, points) for name, points in report["series"].items()]
    data.append({
        "type": "scatter", "mode": "markers", "name": "base model", "x": [0.0], "y": [base["score"]["mean"]],
        "error_y": _errors([base["score"]]), "marker": {"color": "#8d93a0", "symbol": "star", "size": 13},
    })  # fmt: skip
    return {
        "data": data,
        "layout": {
            "title": {"text": "Mean judge score against KL to the base model, by beta"},
            "xaxis": {"title": {"text": "KL(policy || base), nats per answer"}, "rangemode": "tozero"},
            "yaxis": {"title": {"text": "mean score of the judge (VADER, -1 to 1)"}},
            "template": "plotly_white",
            "legend": {"x": 0.98, "y": 0.02, "xanchor": "right", "yanchor": "bottom"},
        },
    }


def write_page(report: Mapping[str, Any], file: Path) -> None:
    """One HTML file with plotly inside. A picture without a browser needs another library, so there is none."""
    import plotly.graph_objects as go

    file.parent.mkdir(parents=True, exist_ok=True)
    # Only buttons that look at the plot: one of plotly's own sends the data to a service.
    config = {"displaylogo": False, "modeBarButtons": [["zoom2d", "pan2d", "resetScale2d", "toImage"]]}
    go.Figure(figure(report)).write_html(file, include_plotlyjs=True, config=config)


def _trace(name: str, base: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    label, colour, symbol = _LOOKS[name]
    ordered = sorted(points, key=lambda each: -each["beta"])
    line = [base, *ordered]
    kl, score = [each["kl"] for each in line], [each["score"] for each in line]
    return {
        "type": "scatter", "mode": "lines+markers+text", "name": label,
        "x": [each["mean"] for each in kl], "y": [each["mean"] for each in score],
        "error_x": _errors(kl), "error_y": _errors(score),
        "text": ["", *(f"{each['beta']:g}" for each in ordered)], "textposition": "top left",
        "line": {"color": colour, "dash": "dot"}, "marker": {"color": colour, "symbol": symbol, "size": 9},
    }  # fmt: skip


def _errors(intervals: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """From the means to the ends of their intervals, which need not be symmetric."""
    return {
        "type": "data", "symmetric": False, "thickness": 1, "width": 4,
        "array": [each["high"] - each["mean"] for each in intervals],
        "arrayminus": [each["mean"] - each["low"] for each in intervals],
    }  # fmt: skip
