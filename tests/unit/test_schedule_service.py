"""The service of a schedule on a clock of its own: which ticks it sends, when again, and when it gives up."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from clusters.job import JobSpec, JobStatus, State
from pipelines.run.store import ArtifactStore
from pipelines.schedule import service as serving
from pipelines.schedule.ledger import Begin, End, Ledger, Outcome
from pipelines.schedule.service import Patience, Service
from pipelines.schedule.times import Times
from stages.base import StageError

START = datetime(2026, 1, 1, 0, 30, tzinfo=UTC)


def at(hour: int, minute: int = 0) -> datetime:
    return datetime(2026, 1, 1, hour, minute, tzinfo=UTC)


@dataclass
class World:
    """A clock that waiting moves on, and a cluster on which ticks end as they are told to."""

    store: ArtifactStore
    until: datetime
    now: datetime = START
    outcomes: list[Outcome | State] = field(default_factory=list)
    """How ticks end: by an outcome in the ledger, or by a job's state without a word there; "nothing" at the end."""
    minutes: int = 3
    """How long they take."""
    sent: list[datetime] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    asked_to_stop: list[str] = field(default_factory=list)
    trouble: list[Exception] = field(default_factory=list)
    """What the cluster says instead of taking a job."""
    knows: frozenset[str] = frozenset()
    _ends: datetime = START
    _state: State = "done"

    # A launcher

    def submit(self, job: Any) -> str:
        if self.trouble:
            raise self.trouble.pop(0)
        self.sent.append(job)
        self._ends = self.now + timedelta(minutes=self.minutes)
        self._state = self._tick(job, self.outcomes.pop(0) if self.outcomes else "nothing")
        return f"job-{len(self.sent)}"

    def status(self, job: str) -> JobStatus:
        if self.asked_to_stop:
            return JobStatus("stopped")
        return JobStatus("running") if self.now < self._ends else JobStatus(self._state, "exit code 9")

    def logs(self, job: str) -> str:
        return "Traceback\n  hf_abcdefghijklmnopqrstuvwxyz is the token\n"

    def stop(self, job: str) -> None:
        self.asked_to_stop.append(job)

    def _tick(self, due: datetime, outcome: Any) -> State:
        ledger = Ledger(self.store, "nightly")
        if outcome in ("failed by itself", "stopped", "gone"):
            return "failed" if outcome == "failed by itself" else outcome
        if outcome == "held":
            return "done"
        if outcome == "nothing":
            ledger.nothing(due)
            return "done"
        number = len(ledger.ticks) + 1
        if ledger.open is None:
            ledger.begin(Begin(number, due, self.now, "here", 0, ("x",), (), ("x.jsonl",)))
        if outcome in ("begun", "begun elsewhere"):
            return "failed" if outcome == "begun" else "done"
        ledger.end(ledger.ticks[-1].begin.number, End(outcome, self.now, "because", "run-1", "the.log"))
        return "failed" if outcome == "failed" else "done"

    # An event

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=max(seconds, 20))

    def is_set(self) -> bool:
        return self.now >= self.until

    def set(self) -> None:
        self.until = self.now


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(ArtifactStore(str(tmp_path / "store")), until=at(4, 30))
    monkeypatch.setattr(serving, "now", lambda: made.now)
    return made


def serve(world: World, patience: Patience = Patience(600, 3, 300), **about: Any) -> int:  # noqa: B008
    job: Callable[[datetime], JobSpec] = lambda due: due  # type: ignore[assignment,return-value]  # noqa: E731
    times = Times.parse("0 * * * *", "UTC")
    made = Service(
        "nightly", times, world.store, world, job, world.said.append, patience, stop=world,  # type: ignore[arg-type]
        _last=world.now, _not_before=world.now, **about,
    )  # fmt: skip
    return made.run()


def test_each_due_time_gets_a_tick_and_the_first_waits_for_its_own(world: World) -> None:
    assert serve(world) == 0
    assert world.sent == [at(1), at(2), at(3), at(4)]


def test_ticks_that_were_due_while_it_was_away_become_one(world: World) -> None:
    world._tick(at(1), "promoted")
    world.now, world.until = at(3, 20), at(4, 30)
    serve(world)
    assert world.sent == [at(3), at(4)]


def test_a_tick_that_takes_longer_than_the_next_is_due_is_followed_by_one(world: World) -> None:
    world.minutes, world.until = 130, at(5, 30)
    serve(world)
    assert world.sent == [at(1), at(3), at(5)]


def test_a_clock_that_is_set_back_repeats_none(world: World) -> None:
    waited = world.wait
    jumps = [at(2, 30)]

    def wait(seconds: float) -> None:
        waited(seconds)
        if jumps and world.now > jumps[0]:
            jumps.pop()
            world.now -= timedelta(hours=2)

    world.wait = wait  # type: ignore[method-assign]
    serve(world)
    assert world.sent == [at(1), at(2), at(3), at(4)]


def test_one_that_failed_is_tried_again_ever_later_until_it_is_too_often(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.outcomes = ["failed", "failed", "failed"]
    world.minutes = 0
    told: list[tuple[str, Any]] = []
    monkeypatch.setattr(serving.webhook, "call", lambda url, event: told.append((url, event)))
    times = []
    submit = world.submit
    world.submit = lambda job: times.append(world.now) or submit(job)  # type: ignore[method-assign,func-returns-value]
    assert serve(world, url="https://hook") == 1
    assert world.sent == [at(1), at(1), at(1)]
    pauses = [second - first for first, second in itertools.pairwise(times)]
    assert timedelta(minutes=10) <= pauses[0] < timedelta(minutes=20) <= pauses[1]
    assert {url for url, _ in told} == {"https://hook"}
    assert [(event["failures"], event["stopped"]) for _, event in told] == [(1, False), (2, False), (3, True)]
    event = told[0][1]
    assert (event["pipeline"], event["run"], event["reason"], event["log"]) == (
        "nightly",
        "run-1",
        "because",
        "the.log",
    )
    json.dumps(event)
    assert "stops" in world.said[-1]


def test_a_success_resets_the_count(world: World) -> None:
    world.outcomes = ["failed", "failed", "promoted", "failed", "failed", "refused"]
    assert serve(world) == 0


def test_a_tick_that_died_without_a_word_is_told_with_what_its_job_said(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(serving.webhook, "call", lambda _, event: told.append(event) or "HTTP 500")  # type: ignore[func-returns-value]
    world.outcomes = ["failed by itself"]  # type: ignore[list-item]
    serve(world, url="https://hook")
    assert world.sent[:2] == [at(1), at(1)]
    assert "exit code 9: Traceback [secret] is the token" in told[0]["reason"]
    assert told[0]["run"] is None
    assert any("webhook could not be called: HTTP 500" in text for text in world.said)


def test_one_that_another_host_is_at_is_looked_at_again_when_its_lease_may_be_over(world: World) -> None:
    world.outcomes = ["held", "held", "nothing"]  # type: ignore[list-item]
    world.minutes = 0
    serve(world)
    assert world.sent[:4] == [at(1), at(1), at(1), at(2)]


def test_one_that_was_cut_off_is_gone_on_with_when_the_service_starts(world: World) -> None:
    world._tick(at(0), "begun")
    world.outcomes = ["promoted"]
    serve(world)
    assert world.sent[:2] == [at(0), at(1)]


def test_one_that_failed_before_the_service_started_is_tried_again(world: World) -> None:
    world._tick(at(0), "failed")
    serve(world)
    assert world.sent[:2] == [at(0), at(1)]


def test_a_cluster_that_takes_no_job_is_a_failure_of_the_schedule(world: World) -> None:
    world.trouble = [StageError("no answer"), OSError("no answer")]
    serve(world)
    assert world.sent == [at(1), at(2), at(3), at(4)]
    assert sum("no answer" in text for text in world.said) == 2


def test_told_to_stop_it_tells_the_tick_and_waits_for_it(world: World) -> None:
    world.until, world.minutes = at(1, 1), 500
    assert serve(world) == 0
    assert world.asked_to_stop == ["job-1"]


def test_sigterm_ends_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "now", lambda: world.now)
    stop = threading.Event()
    about = Service(
        "nightly", Times.parse("0 * * * *", "UTC"), world.store, world, lambda due: due, world.said.append, stop=stop  # type: ignore[arg-type,return-value]
    )  # fmt: skip
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
    assert about.run() == 0
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_words_of_an_earlier_failure_are_not_taken_for_those_of_one_without_any(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(serving.webhook, "call", lambda _, event: told.append(event))
    world.outcomes = ["failed", "failed by itself"]  # type: ignore[list-item]
    serve(world, url="https://hook")
    assert [event["run"] for event in told] == ["run-1", None]


@pytest.mark.parametrize("state", ["held", "stopped", "gone"])
def test_a_tick_that_did_not_come_about_is_sent_again_after_the_lease(world: World, state: Any) -> None:
    world.outcomes, world.minutes = ["nothing", state], 0
    when = []
    submit = world.submit
    world.submit = lambda job: when.append(world.now) or submit(job)  # type: ignore[method-assign,func-returns-value]
    serve(world)
    assert world.sent == [at(1), at(2), at(2), at(3), at(4)]
    assert when[2] - when[1] >= timedelta(minutes=5)
    assert any("failed" in text for text in world.said) == (state != "held")


def test_after_trouble_of_its_own_it_waits(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.trouble = [StageError("no answer"), OSError("the disk is full")]
    waits = []
    wait = world.wait
    monkeypatch.setattr(world, "wait", lambda seconds: waits.append(seconds) or wait(seconds))  # type: ignore[func-returns-value]
    serve(world)
    assert [seconds for seconds in waits if seconds > 1] == [600, 1200]


def test_a_tick_that_another_host_has_begun_is_looked_at_until_it_has_ended(world: World) -> None:
    world.outcomes, world.minutes = ["begun elsewhere", "promoted"], 0  # type: ignore[list-item]
    serve(world)
    assert world.sent == [at(1), at(1), at(2), at(3), at(4)]
