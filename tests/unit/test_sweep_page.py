"""The page of a sweep: what it shows, that it loads nothing, and that no text of the data is HTML."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from pipelines.report.sweep_page import page

HOSTILE = "</script><script>alert(1)</script> <img src=x onerror=alert(2)> & 'quoted' \"twice\""
EMPTY = {"input", "meta", "link", "img", "br"}


class Page(HTMLParser):
    """The page as a browser takes it apart: all tags with their attributes, and the text that is shown."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.scripts: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open += [] if tag in EMPTY else [tag]
        if tag == "script":
            self.scripts.append("")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" in self.open:
            self.scripts[-1] += data
        elif "style" not in self.open:
            self.text += data
            if "td" in self.open or "th" in self.open:
                self.rows[-1][-1] += data

    @property
    def figures(self) -> list[dict[str, Any]]:
        return json.loads(self.scripts[0], parse_constant=pytest.fail) if self.scripts else []

    def trials(self) -> list[list[str]]:
        """The rows of the table of trials."""
        head = next((i for i, row in enumerate(self.rows) if row[0] == "trial"), len(self.rows))
        return self.rows[head + 1 :]


def trial(number: int, status: str = "done", score: Any = None, **more: Any) -> dict[str, Any]:
    reached = {} if score is None else {"reward_accuracy": score, "kl": 0.1 * number}
    curve = [{"share": share, "reward_accuracy": 0.5 + share / 10} for share in (0.5, 1.0)] if reached else []
    training = [{"step": step, "steps": 3, "loss": 0.7 / step} for step in (1, 2, 3)] if reached else []
    point = {"beta": 0.01 * 3**number, "batch_size": 8 * number, "loss": "ipo" if number % 2 else "sigmoid", "rank": 8}
    base = {"number": number, "point": point, "status": status, "reason": "", "seconds": 1.5, "share": 1.0, "seeds": 1}
    return {**base, "scores": reached, "spread": {}, "curve": curve, "training": training, **more}


def sweep(*trials: dict[str, Any], **more: Any) -> dict[str, Any]:
    names = {name: {"log": name == "beta"} for name in ("beta", "batch_size", "loss", "rank")}
    return {
        "sweep": "cheerful-1", "round": 1, "status": "done", "spec": "spec.yaml", "seconds": 99.0, "search": "random",
        "started": "2026-11-29T00:00:00+00:00", "scheduler": "asha", "wanted": len(trials), "parameters": names,
        "objective": [{"name": "reward_accuracy", "mode": "max"}], "trials": list(trials), "winner": None,
        "pareto": [], "command": None, **more,
    }  # fmt: skip


def full(**more: Any) -> dict[str, Any]:
    stopped = trial(3, "stopped", 0.9, reason="below the median")
    trials = (trial(1, score=0.6), trial(2, score=0.7), stopped, trial(4, "failed", reason="out of memory"))
    return sweep(*trials, **({"winner": 2, "command": "rondo run spec.yaml --set train.beta=0.09"} | more))


def test_it_says_how_the_sweep_went_who_won_and_how_to_run_that() -> None:
    text = page(full())
    shown = Page(text)
    assert "highest reward_accuracy" in shown.text
    assert re.search(r"4 of 4\s*trials\s*2\s*done\s*1\s*stopped\s*1\s*failed", shown.text)
    assert "Trial 2: reward_accuracy 0.7" in shown.text
    assert ">rondo run spec.yaml --set train.beta=0.09</pre>" in text
    assert ["beta", "0.09"] in shown.rows


def test_finished_trials_stand_first_the_best_on_top_and_the_winner_is_marked() -> None:
    rows = Page(page(full())).trials()
    assert [row[0] for row in rows] == ["2 winner", "1", "3", "4"]
    assert [row[-1] for row in rows] == ["", "", "below the median", "out of memory"]
    down = full(objective=[{"name": "reward_accuracy", "mode": "min"}], winner=1)
    assert [row[0] for row in Page(page(down)).trials()] == ["1 winner", "2", "3", "4"]
    seeds = sweep(trial(1, score=0.61234, spread={"reward_accuracy": 0.0213}))
    assert "0.6123 ± 0.021" in Page(page(seeds)).trials()[0]


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


ODD = [{"name": "robust", "smoothing": 0.1}, None, True, ["a", 1], "x" * 300, 7, math.nan]
EDGES = {
    "no trial": (sweep(status="running", wanted=8), ["No trial finished yet.", "No trial has started yet."], 0),
    "one trial": (sweep(trial(1, score=0.6), winner=1), ["Trial 1: reward_accuracy 0.6", "need two trials"], 2),
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


def told(text: str) -> Page:
    """A page with one text in every place that takes text."""
    point = {"beta": 0.1, "batch_size": 9, "loss": text, text: {text: text}}
    record = full(sweep=text, spec=text, command=text, search=text, started=text, scheduler=text, status=text)
    record["trials"][1:] = [trial(2, "stopped", 0.7, reason=text, point=point), trial(4, text, scores={text: 0.5})]
    return Page(page(record))


def test_text_of_the_data_is_never_html() -> None:
    shown = told(HOSTILE)
    assert [tag for tag, _ in shown.tags] == [tag for tag, _ in told("harmless").tags]
    assert all(not name.startswith("on") for _, attributes in shown.tags for name in attributes)
    assert shown.text.count(HOSTILE) >= 12
    # plotly reads tags in the text that it draws, so they are escaped there once more.
    hovers = [text for figure in shown.figures for trace in figure["data"] for text in trace.get("text", [])]
    assert any("&lt;/script&gt;" in text for text in hovers)
    assert all(re.findall("<(?!br>)", text) == [] for text in hovers)


def test_it_loads_nothing_and_every_plot_has_words() -> None:
    text = page(full())
    shown = Page(text)
    assert not {"link", "img", "iframe", "base", "form"} & {tag for tag, _ in shown.tags}
    assert all(not {"src", "href", "action"} & set(attributes) for _, attributes in shown.tags)
    policy = next(a["content"] or "" for tag, a in shown.tags if tag == "meta" and a.get("http-equiv"))
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    assert len(shown.scripts) == 3  # the figures, plotly once, and what draws
    assert not re.search(r"https?:|url\(|@import", text.replace(shown.scripts[1], ""))
    described = {a["id"]: a["aria-label"] for tag, a in shown.tags if tag == "div" and a.get("role") == "img"}
    assert list(described) == [figure["id"] for figure in shown.figures]
    assert all(words and words.endswith(".") and len(words) > 40 for words in described.values())
