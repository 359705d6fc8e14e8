"""A schedule from its first champion to the end of its patience, with real services, runs and kills."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil

from pipelines.run.champions import Champions
from pipelines.run.store import ArtifactStore
from pipelines.schedule import lease
from pipelines.schedule.ledger import End, Ledger
from tests import specs, tiny

NAME = "nights"


class Schedule:
    """A folder whose files grow, a store, and services that tick every other second."""

    def __init__(self, folder: Path, webhook: str) -> None:
        self.folder, self.store = folder, ArtifactStore(str(folder / "store"))
        self._environment = {**os.environ, "RONDO_WEBHOOK": webhook, "XDG_STATE_HOME": str(folder / "state")}
        self.services: list[subprocess.Popen[bytes]] = []
        tiny.save(folder / "model")
        (folder / "pairs").mkdir()
        specs.jsonl(folder / "heldout.jsonl", specs.prompts(8))
        shutil.copyfile(Path(__file__).with_name("letters.py"), folder / "letters.py")
        self.judge(1)

    def judge(self, sign: int) -> None:
        judge = {"use": "letters:Letters", "options": {"sign": sign}}
        train = {"learning_rate": 1e-2, "batch_size": 4, "epochs": 3, "precision": "fp32"}
        specs.write(self.folder, {
            "name": NAME, "policy": {"model": "model"}, "preferences": ["pairs"],
            "prompts": {"heldout": "heldout.jsonl"}, "judge": judge, "train": train,
            "rollout": {"engine": "transformers", "max_tokens": 12, "max_length": 64},
            "evaluate": {"promote_if": {"win_rate": 0.55}},
        })  # fmt: skip

    def file(self, name: str, numbers: range, more: list[dict[str, Any]] | None = None) -> None:
        rows = [{"prompt": f"Say {number}.", "chosen": "a" * 9, "rejected": "z" * 9} for number in numbers]
        made = specs.jsonl(self.folder / f".{name}", [*rows, *(more or [])])
        made.rename(self.folder / "pairs" / name)  # nobody reads half of it

    def serve(self) -> subprocess.Popen[bytes]:
        log = (self.folder / f"service-{len(self.services)}.log").open("wb")
        command = [
            sys.executable, "-m", "pipelines", "schedule", "spec.yaml", "--cron", "*/2 * * * * *", "--lease", "12",
            "--retry-after", "0", "--max-failures", "3", "--store", self.store.location,
        ]  # fmt: skip
        environment = {**self._environment, "PYTHONPATH": str(Path(__file__).parents[2])}
        started = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)
        self.services.append(started)
        return started

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.store, NAME)

    def ended(self, number: int) -> End | None:
        ticks = self.ledger.ticks
        return ticks[number - 1].end if len(ticks) >= number else None

    def wait(self, condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + 180
        while not (found := condition()):
            assert any(each.poll() is None for each in self.services), self.logs()
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.1)
        return found

    def logs(self) -> str:
        return "\n".join(file.read_text() for file in self.folder.glob("service-*.log"))

    def kill_tick(self) -> subprocess.Popen[bytes]:
        """Kill the running tick and its service, and nothing else; returns the service that is left."""
        holder = lease.holder(self.store, NAME)
        assert holder is not None
        tick = psutil.Process(holder.process)
        above = {process.pid for process in tick.parents()}
        (own,) = [each for each in self.services if each.pid in above]
        own.kill()
        os.killpg(os.getpgid(tick.pid), signal.SIGKILL)
        (other,) = [each for each in self.services if each is not own]
        return other


@contextmanager
def hook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that keeps what it is told."""
    told: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/secret", told
    finally:
        server.shutdown()
        server.server_close()


def test_from_the_first_champion_to_the_end_of_its_patience(tmp_path: Path) -> None:
    with hook() as (url, told):
        schedule = Schedule(tmp_path, url)
        try:
            _promotes_although_killed(schedule)
            _promotes_what_is_better_and_refuses_what_is_worse(schedule)
            _stops_after_failures(schedule, told)
        finally:
            for each in schedule.services:
                with suppress(ProcessLookupError):
                    each.terminate()
                each.wait(timeout=60)


def _promotes_although_killed(schedule: Schedule) -> None:
    """Two services share the store. One is killed while its tick trains; the other goes on with that tick."""
    schedule.file("one.jsonl", range(24))
    for _ in range(2):
        schedule.serve()
    schedule.wait(lambda: any(each["produces"] == "logprobs" for each in schedule.store.manifests()))
    left = schedule.kill_tick()
    schedule.services[:] = [left]
    end = schedule.wait(lambda: schedule.ended(1))
    assert (end.outcome, len(schedule.ledger.ticks)) == ("promoted", 1), schedule.logs()
    record = schedule.store.read_run(end.run)
    assert record is not None
    cached = {step["key"]: step["cached"] for step in record["steps"]}
    assert cached["round-1/reference"]
    assert Champions(schedule.store, NAME).require().run == end.run
    schedule.wait(lambda: schedule.ledger.quiet)  # nothing is new


def _promotes_what_is_better_and_refuses_what_is_worse(schedule: Schedule) -> None:
    schedule.serve()
    schedule.file("two.jsonl", range(20, 44))  # four rows of it were in the first
    assert schedule.wait(lambda: schedule.ended(2)).outcome == "promoted", schedule.logs()
    champion = Champions(schedule.store, NAME).require()
    schedule.judge(-1)
    schedule.file("three.jsonl", range(50, 74))
    assert schedule.wait(lambda: schedule.ended(3)).outcome == "refused", schedule.logs()
    assert Champions(schedule.store, NAME).require() == champion
    ticks = schedule.ledger.ticks
    for before, after in itertools.pairwise(ticks):
        assert before.end is not None
        assert before.end.ended <= after.begin.began
    records = [schedule.store.read_run(str(tick.end and tick.end.run)) or {} for tick in ticks]
    pairs = [record["rounds"][0]["pairs"] for record in records]
    assert pairs == [24, 20, 24]


def _stops_after_failures(schedule: Schedule, told: list[dict[str, Any]]) -> None:
    """More rows than may be are bad, behind those that are looked at before a run."""
    other = schedule.services.pop(0)
    other.terminate()
    other.wait(timeout=60)  # else it may still begin the tick, and tell of its failure as well
    (service,) = schedule.services
    schedule.file("four.jsonl", range(100, 1300), [{"prompt": "?"}] * 1200)
    assert service.wait(timeout=120) == 1, schedule.logs()
    assert [event["failures"] for event in told] == [1, 2, 3]
    assert told[-1]["stopped"]
    assert "cannot be used" in told[0]["reason"]
    assert "secret" not in schedule.logs()
    assert Champions(schedule.store, NAME).require().number == 2
