"""What a run's table says of a round."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import ANY

import pytest
from rich.console import Console
from rich.table import Table

from pipelines.plan import rounds
from pipelines.run import evaluation, summary
from pipelines.run.runner import StepResult
from tests.unit import workspace
from tests.unit.workspace import OFFLINE, SPEC

GATE = "evaluate: {promote_if: {win_rate: 0.5}}\n"
HELDOUT = "data: {heldout: 0.5}\n"


@pytest.mark.parametrize(
    ("text", "decided", "shown"),
    [
        (OFFLINE, "unmeasured", "yes (nothing measured)"),
        (OFFLINE + HELDOUT, "measured", "yes (no gate)"),
        (SPEC, "measured", "yes (no gate)"),
        (SPEC + GATE, "gate", "yes"),
    ],
)
def test_a_promotion_says_what_it_was_decided_by(tmp_path: Path, text: str, decided: str, shown: str) -> None:
    folder = workspace.make(tmp_path)
    planned = rounds.plan(workspace.loaded(folder, text).spec, folder)
    trained = [StepResult(planned.rounds[0].train, False, 1.0, {}, ANY, "")]
    made = summary.summarise(planned, trained, False)
    (row,) = made["rounds"]
    assert (row["promoted"], row["decided"]) == (True, decided)
    console = Console(width=200, record=True)
    console.print(summary.table([row]))
    cells = console.export_text().split("│")
    assert shown in [cell.strip() for cell in cells]


def test_evaluations_are_shown_by_baseline_and_task() -> None:
    rate = {"mean": 0.75, "low": 0.6, "high": 0.9, "prompts": 40}
    found = {
        "win_rate": rate, "wins": 0.7, "ties": 0.1, "losses": 0.2, "length_ratio": None,
        "length_controlled": {"mean": 0.5, "low": 0.4, "high": 0.6}, "tasks": {"math": {"win_rate": rate}},
    }  # fmt: skip
    sides = {"tokens": 12.4, "distinct_1": 0.5, "distinct_2": 0.75, "repetition": 0.0, "refusals": 0.25}
    checks = {"prompts": 7, "change": {"mean": -0.25, "low": -0.5, "high": 0.0}}
    row = {
        "round": 3,
        "against": {"previous": found},
        "answers": {"policy": sides, "previous": sides},
        "checks": checks,
    }
    row["divergence"] = {"mean": 3.0, "low": 2.5, "high": 3.5}
    against, answers = evaluation.against_table([row]), evaluation.answers_table([row])
    assert against is not None
    assert answers is not None
    assert cells(against)[:4] == [
        ["3", "previous", "40", "0.70", "0.10", "0.20", "0.75 [0.60, 0.90]", "0.50 [0.40, 0.60]", "-"],
        ["", "math", "40", "", "", "", "0.75 [0.60, 0.90]", "", ""],
        ["3", "reference", "", "", "", "", "KL 3.00 [2.50, 3.50] nats per answer", "", ""],
        ["3", "checks", "7", "", "", "", "score -0.250 [-0.500, +0.000]", "", ""],
    ]
    assert cells(answers)[0] == ["3", "new", "12", "0.500", "0.750", "0.000", "0.250"]
    assert evaluation.against_table([{"round": 1}]) is None
    assert evaluation.answers_table([{"round": 1}]) is None


def cells(table: Table) -> list[list[str]]:
    console = Console(width=200, record=True)
    console.print(table)
    lines = [line for line in console.export_text().splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_seconds_of_many_rounds_are_those_of_the_last_eight() -> None:
    table = summary.seconds_table([{"round": number, "seconds": {"train": 1.0}} for number in range(1, 31)])
    assert [column.header for column in table.columns] == ["stage", *(f"round {number}" for number in range(23, 31))]
