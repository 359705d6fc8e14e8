"""What a run's table says of a round."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import ANY

import pytest
from rich.console import Console

from pipelines.plan import rounds
from pipelines.run import summary
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


def test_seconds_of_many_rounds_are_those_of_the_last_eight() -> None:
    table = summary.seconds_table([{"round": number, "seconds": {"train": 1.0}} for number in range(1, 31)])
    assert [column.header for column in table.columns] == ["stage", *(f"round {number}" for number in range(23, 31))]
