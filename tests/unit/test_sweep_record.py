"""What a sweep remembers of its trials, who wins, and what is shown."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipelines.run.store import ArtifactStore
from pipelines.sweep import view
from pipelines.sweep.end import decide
from pipelines.sweep.record import Record, head
from stages.tune.config import SweepConfig

SETTINGS = SweepConfig.model_validate({"space": {"beta": {"loguniform": [0.1, 1]}, "wpo": [True, False]}, "trials": 4})
Open = Callable[..., Record]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    def make(settings: SweepConfig = SETTINGS) -> Record:
        return Record(ArtifactStore(str(tmp_path)), "tiny-1", head(settings, 1, "spec.yaml", "2026-01-01"))

    return make


def stored(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "sweeps/tiny-1/sweep.json").read_text())
    return found


def result(accuracy: float, share: float = 1.0, **more: Any) -> dict[str, Any]:
    scores = {"reward_accuracy": accuracy, "kl": 0.5}
    return {"share": share, "scores": scores, "curve": [{"share": share, **scores}], "training": [], **more}


def final(accuracy: float, kl: float = 0.5) -> dict[str, Any]:
    found = result(accuracy, final=True, each=[{}, {}], spread={"reward_accuracy": 0.1})
    found["scores"]["kl"] = kl
    return found


def test_trials_from_their_start_to_their_end(opened: Open, tmp_path: Path) -> None:
    record = opened()
    for number in (1, 2, 3, 4):
        record.add(number, {"beta": number / 10, "wpo": True})
    record.started(1)
    assert stored(tmp_path)["trials"][0]["status"] == "running"
    record.measured(1, result(0.5, 0.3))
    assert stored(tmp_path)["trials"][0] | {"seconds": 0} == {
        "number": 1, "point": {"beta": 0.1, "wpo": True}, "status": "running", "reason": "", "seconds": 0,
        "share": 0.3, "scores": {"reward_accuracy": 0.5, "kl": 0.5}, "spread": {}, "seeds": 1,
        "curve": [{"share": 0.3, "reward_accuracy": 0.5, "kl": 0.5}], "training": [],
    }  # fmt: skip
    record.ended(1, final(0.75))
    record.started(2)
    record.ended(2, result(0.4, 1 / 3))
    record.started(3)
    record.failed(3, "the gradient is not finite")
    record.started(4)
    record.deadline = 0.0
    record.ended(4, result(0.6, 0.5))
    trials = stored(tmp_path)["trials"]
    assert [trial["status"] for trial in trials] == ["done", "stopped", "failed", "unfinished"]
    assert (trials[0]["seeds"], trials[0]["spread"]) == (2, {"reward_accuracy": 0.1})
    assert trials[1]["reason"] == "did not go on after 33% of the training"
    assert trials[2]["reason"] == "the gradient is not finite"
    assert trials[3]["reason"] == "the sweep's time was over"


def test_what_has_ended_stays_as_it_is_when_it_is_told_again(opened: Open) -> None:
    first = opened()
    for number, end in ((1, final(0.75)), (2, result(0.4, 1 / 3))):
        first.add(number, {"beta": 1, "wpo": True})
        first.started(number)
        first.ended(number, end)
    first.add(3, {"beta": 2, "wpo": True})
    first.started(3)
    again = opened()  # after a kill
    assert [again.is_over(number) for number in (1, 2, 3, 4)] == [True, True, False, False]
    assert again.trial(3)["status"] == "unfinished"
    before = json.loads(json.dumps(again.trials[:2]))
    for number in (1, 2):
        again.started(number)
        again.measured(number, result(0.1, 0.1))
        again.ended(number, result(0.1, 0.1))
        again.failed(number, "no")
    assert again.trials[:2] == before
    assert again.add(1, {"beta": 9})["point"] == {"beta": 1, "wpo": True}


def test_the_time_of_earlier_commands_counts(opened: Open, tmp_path: Path) -> None:
    first = opened()
    first.save()
    place = tmp_path / "sweeps/tiny-1/sweep.json"
    place.write_text(json.dumps(stored(tmp_path) | {"seconds": 100.0}))
    again = opened()
    again.save()
    assert stored(tmp_path)["seconds"] >= 100.0


def test_a_trial_whose_process_was_lost_keeps_its_time_and_its_reason_has_no_secrets(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("pipelines.sweep.record.time.monotonic", lambda: now[0])
    record = opened()
    record.add(1, {"beta": 1, "wpo": True})
    record.started(1)
    now[0] = 105.0
    record.started(1)  # again, by Ray Tune
    now[0] = 107.0
    record.failed(1, "no access with hf_abcdefghijklmnopqrstuvwx")
    assert record.trial(1)["seconds"] == 7.0
    assert record.trial(1)["reason"] == "no access with [secret]"


@pytest.mark.parametrize(
    ("objective", "ends", "winner", "pareto"),
    [
        ("reward_accuracy", [final(0.5), final(0.75), final(0.75)], 2, []),
        ("kl", [final(0.5, 3), final(0.5, 1), final(0.5, 2)], 2, []),
        (["reward_accuracy", "kl"], [final(0.5, 1), final(0.9, 3), final(0.4, 2), final(0.9, 3)], 2, [1, 2, 4]),
        ("reward_accuracy", [result(0.9, 0.5), final(0.5)], 2, []),
        ("reward_accuracy", [final(float("nan")), final(0.1)], 2, []),
        ("win_rate", [final(0.5)], None, []),
        ("reward_accuracy", [], None, []),
    ],
)
def test_who_wins(opened: Open, objective: Any, ends: list[Any], winner: int | None, pareto: list[int]) -> None:
    settings = SweepConfig.model_validate({"space": {"beta": [1]}, "objective": objective})
    record = opened(settings)
    for number, end in enumerate(ends, 1):
        record.add(number, {"beta": number})
        record.started(number)
        record.ended(number, end)
    decide(record.document)
    assert record.document["winner"] == winner
    assert record.document["pareto"] == pareto


def test_without_a_terminal_each_event_is_a_line(opened: Open) -> None:
    record, out = opened(), io.StringIO()
    record.add(1, {"beta": 0.123456, "wpo": True})
    with view.View(Console(file=out, width=100), record.document, 1) as shown:
        record.changed = shown.show
        record.started(1)
        record.add(2, {"beta": 1, "wpo": True})  # waits
        record.measured(1, result(0.5, 0.25))
        record.measured(1, result(0.5, 0.25))
        record.measured(1, result(0.5, 1.0))
        record.ended(1, final(0.75))
    assert out.getvalue().splitlines() == [
        "trial   1  running   beta=0.1235 wpo=True",
        "trial   1  running at 25%   beta=0.1235 wpo=True   reward_accuracy 0.5000",
        "trial   1  done   beta=0.1235 wpo=True   reward_accuracy 0.7500 ± 0.1000",
    ]


def test_on_a_terminal_a_table_changes(opened: Open) -> None:
    record, out = opened(), io.StringIO()
    record.add(1, {"beta": 0.5, "wpo": True})
    console = Console(file=out, width=120, force_terminal=True)
    with view.View(console, record.document, 1) as shown:
        record.changed = shown.show
        record.started(1)
        record.ended(1, final(0.75))
    said = out.getvalue()
    assert "1 of 4 trials (1 done)" in said
    assert "left" in said
    assert "0.7500 ± 0.1000" in said


def test_the_table_has_the_best_first_and_marks_the_winner(opened: Open) -> None:
    record, out = opened(), io.StringIO()
    for number, end in enumerate([final(0.5), result(0.9, 0.5), final(0.75)], 1):
        record.add(number, {"beta": number, "wpo": "[red]"})
        record.started(number)
        record.ended(number, end)
    decide(record.document)
    Console(file=out, width=120).print(view.table(record.document, rows=2))
    rows = [line for line in out.getvalue().splitlines() if "│" in line]
    assert [row.split("│")[1].strip() for row in rows] == ["*3", "1"]
    assert "[red]" in rows[0]
    assert "and 1 more" in out.getvalue()


@pytest.mark.parametrize(
    ("statuses", "parallel", "left"),
    [
        ([], 1, None),
        ([("running", 5.0)], 1, None),
        ([("done", 10.0), ("stopped", 20.0)], 1, 30.0),
        ([("done", 10.0), ("running", 4.0)], 2, 13.0),
        ([("done", 10.0), ("running", 40.0)], 1, 20.0),
        ([("done", 1.0)] * 4, 1, 0.0),
    ],
)
def test_the_time_that_is_left(
    opened: Open, statuses: list[tuple[str, float]], parallel: int, left: float | None
) -> None:
    trials = [{"status": status, "seconds": seconds} for status, seconds in statuses]
    assert view.time_left({**opened().document, "trials": trials}, parallel) == left


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (61, "1 min 1 s"), (7322, "2 h 2 min")])
def test_durations(seconds: float, text: str) -> None:
    assert view.duration(seconds) == text
