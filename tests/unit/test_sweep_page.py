"""The page of a sweep: what it says, that it loads nothing, and that no text of the data is HTML."""

from __future__ import annotations

import base64
import hashlib
import re

from pipelines.report.sweep_page import page
from tests.unit.sweeps import Page, full, sweep, trial

HOSTILE = "</script><script>alert(1)</script> <img src=x onerror=alert(2)> & 'quoted' \"twice\""


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
    assert [row[2] for row in rows] == ["", "", "below the median", "out of memory"]
    down = full(objective=[{"name": "reward_accuracy", "mode": "min"}], winner=1)
    assert [row[0] for row in Page(page(down)).trials()] == ["1 winner", "2", "3", "4"]
    seeds = sweep(trial(1, score=0.61234, spread={"reward_accuracy": 0.0213}))
    assert "0.6123 ± 0.021" in Page(page(seeds)).trials()[0]


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
    allowed = re.findall("'sha256-(.*?)'", policy)
    assert allowed == [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in shown.scripts[1:]]
    assert "modeBarButtons" in shown.scripts[2]  # plotly's own choice of buttons has one that uploads the data
    assert len(shown.scripts) == 3  # the figures, plotly once, and what draws
    assert not re.search(r"https?:|url\(|@import", text.replace(shown.scripts[1], ""))
    described = {a["id"]: a["aria-label"] for tag, a in shown.tags if tag == "div" and a.get("role") == "img"}
    assert list(described) == [figure["id"] for figure in shown.figures]
    assert all(words and words.endswith(".") and len(words) > 40 for words in described.values())


def test_a_running_sweep_has_a_best_so_far_and_one_without_plots_needs_no_scripts() -> None:
    running = page(full(status="running"))
    assert "Best so far" in Page(running).text
    assert ">Winner<" not in running
    assert Page(running).trials()[0][0] == "2 best so far"
    assert {trace.get("name") for trace in Page(running).figures[1]["data"]} == {
        "best so far",
        "finished",
        "stopped early",
    }
    nothing = page(sweep(trial(1, "failed")))
    assert "<script" not in nothing
    assert "script-src &#39;none&#39;" in nothing


def test_a_file_can_hold_it_whatever_an_error_said() -> None:
    assert "no \udcff file".encode("utf-8", "replace") in page(full(spec="no \udcff file")).encode()
