"""The bar of a running step, and the line of a finished one."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any
from unittest.mock import ANY

import pytest
from rich.console import Console

from pipelines.run.console import Lines
from pipelines.run.runner import StepResult


@pytest.mark.parametrize(("total", "shown"), [(0, "3,000 pairs"), (9000, "3,000/9,000 pairs")])
def test_a_bar_counts_whether_or_not_the_end_is_known(total: int, shown: str) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=110)
    lines = Lines(console, 1)
    step: Any = SimpleNamespace(key="preferences/a.jsonl")
    lines.started(step, "new")
    lines.progress(step, 3000, total, "pairs")
    (task,) = lines._bar.tasks
    assert task.fields["note"] == shown
    assert task.total == (total or None)  # without a total the bar moves, and is not full


@pytest.mark.parametrize("cached", [False, True])
def test_a_steps_note_is_shown(cached: bool) -> None:
    console = Console(file=io.StringIO(), width=80)
    step: Any = SimpleNamespace(key="round-1/reference")
    Lines(console, 1).finished(
        StepResult(step, cached, 1.0, {"pairs": 3, "note": "all [pairs] have one prompt"}, ANY, "")
    )
    assert console.file.getvalue().endswith("\n      note: all [pairs] have one prompt\n")  # type: ignore[attr-defined]
