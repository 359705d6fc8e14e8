"""Records of small sweeps, and the page of a sweep as a browser takes it apart."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

import pytest

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
