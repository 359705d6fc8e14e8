"""What a schedule reports to a Ray cluster's metrics, without Ray."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from clusters import running
from pipelines.run.store import ArtifactStore
from pipelines.schedule import metrics
from pipelines.schedule.ledger import Begin, End, Ledger, Outcome
from stages.base import StageError

MORNING = datetime(2026, 3, 1, 2, tzinfo=UTC)


def ended(store: ArtifactStore, *outcomes: Outcome) -> Ledger:
    """A ledger with a tick a day, each of which took an hour."""
    ledger = Ledger(store, "nights")
    for day, outcome in enumerate(outcomes):
        due = MORNING + timedelta(days=day)
        ledger.begin(Begin(day + 1, due, due, "here", 0, ("one",), (), ("one.jsonl",)))
        ledger.end(day + 1, End(outcome, due + timedelta(hours=1), "because"))
    return ledger


def shown(ledger: Ledger) -> tuple[float, ...]:
    return tuple(value for name, value in metrics.totals(ledger).items() if "timestamp" not in name)


def success(ledger: Ledger) -> float:
    return metrics.totals(ledger)["rondo_schedule_last_success_timestamp_seconds"]


def test_totals_are_those_of_the_ledger(tmp_path: Path) -> None:
    ledger = ended(ArtifactStore(str(tmp_path)), "failed", "promoted", "refused", "failed", "outdated", "failed")
    assert shown(ledger) == (6, 1, 3, 2)
    assert success(ledger) == (MORNING + timedelta(days=2, hours=1)).timestamp()
    assert all(name.startswith("rondo_schedule_") for name in metrics.totals(ledger))


def test_a_tick_that_found_nothing_is_a_success_and_ends_a_row_of_failures(tmp_path: Path) -> None:
    ledger = ended(ArtifactStore(str(tmp_path)), "promoted", "failed")
    ledger.nothing(MORNING + timedelta(days=2))
    assert shown(ledger) == (2, 1, 1, 0)
    assert success(ledger) == (MORNING + timedelta(days=2)).timestamp()


def test_without_a_success_its_time_is_0(tmp_path: Path) -> None:
    assert success(ended(ArtifactStore(str(tmp_path)), "failed")) == 0


def test_a_tick_that_has_not_ended_counts_as_one(tmp_path: Path) -> None:
    ledger = ended(ArtifactStore(str(tmp_path)), "promoted")
    ledger.begin(replace(ledger.ticks[0].begin, number=2))
    assert shown(ledger) == (2, 1, 0, 0)


def test_a_report_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    metrics.report(ArtifactStore(str(tmp_path)), "nights", "127.0.0.1:1", said.append)  # nobody listens there
    assert len(said) == 1
    assert said[0].startswith("the metrics of this schedule are not reported: no Ray cluster")

    def join(address: str) -> None:
        raise StageError("two\nlines")

    monkeypatch.setattr(running, "join", join)
    metrics.report(ArtifactStore(str(tmp_path)), "nights", "auto", said.append)
    assert said[1:] == ["the metrics of this schedule are not reported: two lines"]
