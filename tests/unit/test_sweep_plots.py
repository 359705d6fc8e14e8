"""The plots of a sweep, as the page hands them to plotly."""

from __future__ import annotations

import json
import math

import pytest

from pipelines.report.sweep_page import page
from tests.unit.sweeps import Page, full, sweep, trial


def test_parallel_coordinates_have_an_axis_for_each_parameter() -> None:
    figure = Page(page(full())).figures[0]["data"][0]
    axes = {axis["label"]: axis for axis in figure["dimensions"]}
    assert list(axes) == ["beta", "batch_size", "loss", "rank", "reward_accuracy"]
    assert axes["beta"]["values"] == pytest.approx([math.log10(0.03), math.log10(0.09), math.log10(0.27)])
    assert axes["beta"]["ticktext"] == ["0.03", "0.09", "0.27"]
    assert axes["loss"]["ticktext"] == ["ipo", "sigmoid"]
    assert axes["loss"]["values"] == [0, 1, 0]
    assert all(axis["range"][0] < axis["range"][1] for axis in axes.values())  # the rank is the same everywhere
    assert figure["line"]["color"] == [0.6, 0.7, 0.9]


def test_many_values_of_a_log_axis_are_read_at_powers_of_ten() -> None:
    trials = [trial(i + 1, score=0.5, point={"beta": 10 ** (-6 + i / 2.5)}) for i in range(11)]
    axis = Page(page(sweep(*trials))).figures[0]["data"][0]["dimensions"][0]
    assert axis["ticktext"] == ["1e-6", "1e-5", "0.0001", "0.001", "0.01"]
    assert axis["tickvals"] == [-6, -5, -4, -3, -2]


def test_each_parameter_that_varies_has_a_plot_and_stopped_trials_look_different() -> None:
    shown = Page(page(full()))
    assert [figure["layout"]["xaxis"]["title"]["text"] for figure in shown.figures[1:4]] == [
        "beta",
        "batch_size",
        "loss",
    ]
    first = shown.figures[1]["data"]
    assert {trace["name"]: trace["x"] for trace in first if trace["name"] == "winner"} == {"winner": [math.log10(0.09)]}
    assert len({trace["marker"]["symbol"] for trace in first}) == len(first) == 3
    assert "rank is 8 in every trial" in shown.text


def test_curves_of_the_objective_and_of_the_loss() -> None:
    shown = Page(page(full()))
    heldout, training = shown.figures[-2:]
    assert heldout["data"][0]["x"] == [0.5, 1.0]
    assert training["data"][0]["y"] == pytest.approx([0.7, 0.35, 0.7 / 3])
    assert len(heldout["data"]) == len(training["data"]) == 3
    long = trial(1, score=0.5, training=[{"step": step, "loss": 0.1} for step in range(1, 10_001)])
    steps = Page(page(sweep(long))).figures[-1]["data"][0]["x"]
    assert len(steps) < 500
    assert steps[-1] == 10_000
    assert "No trial has measured win_rate" in Page(page(full(objective=[{"name": "win_rate", "mode": "max"}]))).text


def test_two_objectives_have_a_front() -> None:
    goals = [{"name": "reward_accuracy", "mode": "max"}, {"name": "kl", "mode": "min"}]
    shown = Page(page(full(objective=goals, pareto=[1, 2])))
    front = next(trace for figure in shown.figures for trace in figure["data"] if trace.get("name") == "Pareto front")
    assert (front["x"], front["y"]) == ([0.6, 0.7], [0.1, 0.2])
    assert "more reward_accuracy and less kl" in shown.text.lower()
    assert "Pareto" not in json.dumps(Page(page(full())).figures)


def test_values_of_every_kind_have_a_place_of_their_own() -> None:
    odd = [True, 1, 10, None, "x" * 300 + "a", "x" * 300 + "b", {"name": "robust"}]
    shown = Page(page(sweep(*(trial(i + 1, score=0.5, point={"loss": value}) for i, value in enumerate(odd)))))
    axis = next(axis for axis in shown.figures[0]["data"][0]["dimensions"] if axis["label"] == "loss")
    assert axis["ticktext"][:2] == ["1", "10"]
    assert {"true", "null", '{"name": "robust"}'} < set(axis["ticktext"])
    assert sorted(axis["values"]) == axis["tickvals"] == list(range(7))
    assert len(set(axis["ticktext"])) == 7  # plotly merges ticks of one name


def test_a_log_axis_with_a_zero_is_drawn_as_it_is() -> None:
    shown = Page(page(sweep(*(trial(i + 1, score=0.5, point={"beta": value}) for i, value in enumerate([0, 0.1, 1])))))
    assert shown.figures[0]["data"][0]["dimensions"][0]["values"] == [0, 0.1, 1]


def test_truth_is_no_number() -> None:
    shown = Page(page(sweep(trial(1, score=0.5, point={"packing": True}), trial(2, score=0.5, point={"packing": 1}))))
    axes = {axis["label"]: axis for axis in shown.figures[0]["data"][0]["dimensions"]}
    assert axes["packing"]["ticktext"] == ["1", "true"]


def test_a_single_step_is_a_dot() -> None:
    first = trial(1, score=0.5, training=[{"step": 1, "loss": 0.7}])
    assert Page(page(sweep(first))).figures[-1]["data"][0]["mode"] == "markers"


def test_colours_run_from_bad_to_good() -> None:
    down = full(objective=[{"name": "reward_accuracy", "mode": "min"}])
    up, down = (Page(page(record)).figures[0]["data"][0]["line"] for record in (full(), down))
    assert [colour for _, colour in up["colorscale"]] == [colour for _, colour in reversed(down["colorscale"])]
    same = Page(page(sweep(trial(1, score=0.5), trial(2, score=0.5)))).figures[0]["data"][0]["line"]
    assert same["cmin"] < 0.5 < same["cmax"]


def test_a_score_that_some_trials_lack_has_no_axis_and_no_dot() -> None:
    goals = [{"name": "reward_accuracy", "mode": "max"}, {"name": "kl", "mode": "min"}]
    lacks = trial(2, score=0.6, scores={"reward_accuracy": 0.6, "kl": None})
    shown = Page(page(sweep(trial(1, score=0.5), lacks, objective=goals)))
    assert [axis["label"] for axis in shown.figures[0]["data"][0]["dimensions"]][-1] == "reward_accuracy"
    trade = next(f for f in shown.figures if f["layout"].get("yaxis", {}).get("title") == {"text": "kl"})
    assert [trace["x"] for trace in trade["data"]] == [[0.5]]


def test_a_legend_names_each_kind_of_line_once() -> None:
    lines = Page(page(full(winner=None))).figures[-1]["data"]
    assert [(line["name"], line["showlegend"]) for line in lines] == [
        ("stopped early", True), ("finished", True), ("finished", False)
    ]  # fmt: skip


ODD = [{"name": "robust", "smoothing": 0.1}, None, True, ["a", 1], "x" * 300, 7, math.nan]
EDGES = {
    "no trial": (sweep(status="running", wanted=8), ["No trial finished yet.", "No trial has started yet."], 0),
    "one trial": (
        sweep(trial(1, score=0.6), winner=1),
        ["Trial 1: reward_accuracy 0.6", "need two trials", "Only trial 1"],
        2,
    ),
    "all failed": (sweep(trial(1, "failed"), trial(2, "failed")), ["No trial finished.", "No trial has a reward"], 0),
    "running": (full(status="running"), ["Best so far", "Trial 2"], 6),
    "waiting": (sweep(trial(1, "waiting", share=None, seconds=None)), ["waiting"], 0),
    "odd values": (sweep(*(trial(i + 1, score=0.5, point={"loss": v}) for i, v in enumerate(ODD))), ["robust"], 4),
    "a value not set": (sweep(trial(1, score=0.5), trial(2, score=0.6, point={})), ["beta"], 7),
    "no number": (sweep(trial(1, score=math.nan), trial(2, score=math.inf), trial(3, score="x")), ["done"], 2),
    "no parameters": (sweep(trial(1, score=0.5, point={}), trial(2, score=0.6, point={}), parameters={}), ["0.6"], 3),
    "nothing known": ({}, ["No trial has started yet."], 0),
    "unknown winner": (full(winner=9), ["No trial has won."], 6),
}


@pytest.mark.parametrize("edge", EDGES)
def test_edges(edge: str) -> None:
    import plotly.graph_objects as go

    record, says, figures = EDGES[edge]
    shown = Page(page(record))
    assert all(sentence in shown.text for sentence in says), shown.text
    assert len(shown.figures) == figures
    for figure in shown.figures:  # plotly refuses what it does not know
        go.Figure(data=figure["data"], layout=figure["layout"])
