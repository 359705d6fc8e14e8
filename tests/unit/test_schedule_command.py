"""``rondo schedule`` from the command line: what it takes, what it refuses, and what it sends."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from clusters.job import JobSpec
from pipelines.cli import app
from pipelines.run.champions import Champions
from pipelines.run.store import ArtifactStore
from pipelines.schedule import tick as ticking
from pipelines.schedule import webhook
from pipelines.schedule.service import Service
from pipelines.schedule.tick import Options
from tests.unit import workspace
from tests.unit.test_kuberay import SMALL
from tests.unit.ticks import NAME, SPEC, Schedule, schedule

__all__ = ["schedule"]


def command(schedule: Schedule, *arguments: str, code: int = 0) -> str:
    place = str(schedule.folder / "store")
    done = CliRunner().invoke(
        app, ["schedule", str(schedule.folder / "spec.yaml"), *arguments], env={"RONDO_STORE": place, "COLUMNS": "200"}
    )
    assert done.exit_code == code, done.output
    return str(done.output)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give one of --cron"),
        (("--once", "--status"), "give one of --cron"),
        (("--cron", "0 2 * * *", "--due", "2026-01-01"), "--due is for --once"),
        (("--once", "--due", "tomorrow"), "not a time such as"),
        (("--cron", "0 26 * * *"), "hour"),
        (("--cron", "0 2 * * *", "--timezone", "Asia/Jakata"), "Asia/Jakarta"),
        (("--once", "--lease", "1"), "--lease"),
        (("--once", "--lease", "inf"), "--lease"),
        (("--once", "--due", "2999-01-01"), "is yet to come"),
        (("--once", "--cluster", "nowhere.yaml"), "nowhere.yaml"),
    ],
)
def test_what_is_wrong_is_one_message(schedule: Schedule, arguments: tuple[str, ...], message: str) -> None:
    assert message in command(schedule, *arguments, code=2)
    assert schedule.ledger.ticks == []


@pytest.mark.parametrize("how", [("--once",), ("--cron", "0 2 * * *")])
def test_a_schedule_needs_a_gate(schedule: Schedule, how: tuple[str, ...]) -> None:
    workspace.spec(schedule.folder, SPEC.replace("evaluate: {promote_if: {win_rate: 0.5}}", "evaluate: {samples: 2}"))
    said = command(schedule, *how, code=2)
    assert "spec.yaml" in said
    assert "evaluate.promote_if" in said


def test_one_tick_now_and_as_json(schedule: Schedule) -> None:
    assert "promoted" in command(schedule, "--once")
    said = command(schedule, "--once", "--json")
    assert json.loads(said.splitlines()[-1])["outcome"] == "nothing"


def test_a_tick_that_fails_calls_the_webhook(schedule: Schedule, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(webhook, "call", lambda url, event: told.append((url, event)) or "HTTP 500")  # type: ignore[func-returns-value]
    monkeypatch.setenv(webhook.URL, "https://hook.example/secret")
    schedule.trouble = lambda _: 1
    said = command(schedule, "--once", code=1)
    ((url, event),) = told
    assert url == "https://hook.example/secret"
    assert (event["tick"], event["run"], event["reason"], event["failures"]) == (1, "run-1", "out of memory", 1)
    assert "secret" not in said
    assert "HTTP 500" in said


def test_a_spec_that_is_refused_calls_it_too(schedule: Schedule, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(webhook, "call", lambda _, event: told.append(event))
    monkeypatch.setenv(webhook.URL, "https://hook.example/secret")
    workspace.spec(schedule.folder, SPEC + "rounds: none\n")
    command(schedule, "--once", code=2)
    monkeypatch.setenv(webhook.URL, "https://hook.example/secret")
    command(schedule, "--once", "--store", "s3://", code=2)
    assert ["rounds" in told[0]["reason"], len(told)] == [True, 2]


def test_the_status_says_what_there_is(schedule: Schedule) -> None:
    said = command(schedule, "--status")
    assert "none yet" in said
    command(schedule, "--once")
    schedule.pairs("two.jsonl", 10)
    schedule.rates = [0.2]
    command(schedule, "--once")
    found = json.loads(command(schedule, "--status", "--json"))
    assert [row["outcome"] for row in found["ticks"]] == ["refused", "promoted"]
    assert (found["champion"]["number"], found["lease"], found["failures"]) == (1, None, 0)
    assert "refused" in command(schedule, "--status")


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> list[Service]:
    """Services that were started, and end at once."""
    started: list[Service] = []
    monkeypatch.setattr(Service, "run", lambda self: started.append(self) or 0)  # type: ignore[func-returns-value]
    return started


def job(service: Service) -> JobSpec:
    return service.job(datetime(2026, 1, 2, 2, tzinfo=UTC))


def test_a_service_sends_ticks_as_processes_of_this_machine(
    schedule: Schedule, services: list[Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(webhook.URL, "https://hook.example/secret")
    command(schedule, "--cron", "0 2 * * *", "--set", "train.beta=0.2", "--lease", "7", "--max-failures", "2")
    (service,) = services
    sent = job(service)
    assert sent.command == "schedule"
    store = str(schedule.folder / "store")
    assert sent.options == (
        "--once", "--lease", "7", "--store", store, "--due", "2026-01-02T02:00:00+00:00", "--set", "train.beta=0.2",
    )  # fmt: skip
    assert (service.url, service.patience.max_failures, service.poll) == ("https://hook.example/secret", 2, 1.0)
    found = json.loads(command(schedule, "--status", "--json"))
    assert (found["schedule"]["cron"], found["schedule"]["timezone"]) == ("0 2 * * *", "UTC")
    assert found["next"].endswith("T02:00:00+00:00")


def test_a_service_sends_ticks_to_a_cluster(schedule: Schedule, services: list[Service]) -> None:
    (schedule.folder / "ray.yaml").write_text(
        f"kind: ray\naddress: http://127.0.0.1:1\nwait: 60\nstore: {schedule.folder}/shared\n"
    )
    done = CliRunner().invoke(
        app, ["schedule", str(schedule.folder / "spec.yaml"), "--cron", "0 2 * * *",
              "--cluster", str(schedule.folder / "ray.yaml")],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    (service,) = services
    assert service.store.location == f"{schedule.folder}/shared"  # where the cluster's ticks keep the ledger
    options = job(service).options
    assert options[options.index("--store") + 1] == f"{schedule.folder}/shared"
    assert options[options.index("--address") + 1] == "auto"
    assert "--due" in options
    said = command(schedule, "--cron", "0 2 * * *", "--cluster", str(schedule.folder / "ray.yaml"), code=2)
    assert "where this looks too" in said


def manifest(schedule: Schedule, *arguments: str, code: int = 0) -> str:
    (schedule.folder / "kuberay.yaml").write_text(SMALL)
    file = str(schedule.folder / "kuberay.yaml")
    return command(schedule, "--cluster", file, "--store", "s3://bucket/runs", *arguments, code=code)


@pytest.mark.parametrize(("form", "kind"), [("raycronjob", "RayCronJob"), ("cronjob", "CronJob")])
def test_for_kubernetes_it_is_a_manifest(schedule: Schedule, form: str, kind: str) -> None:
    made = yaml.safe_load(manifest(schedule, "--cron", "0 2 * * *", "--timezone", "Asia/Jakarta", "--manifest", form))
    (found,) = [item for item in made["items"] if item["kind"] == kind]
    assert (found["spec"]["schedule"], found["spec"]["timeZone"]) == ("0 2 * * *", "Asia/Jakarta")
    assert "--once" in json.dumps(made)


@pytest.mark.parametrize(
    ("cron", "message"),
    [
        ("0 0 2 * * *", "five fields"), ("0 2 * * 7", "Sunday is 0"), ("0 2 * * 5-7", "Sunday is 0"),
        ("0 2 L * *", "L nor #"), ("0 2 * * MON#2", "L nor #"), ("0 2 * * 5L", "L nor #"),
    ],
)  # fmt: skip
def test_cron_lines_that_kubernetes_reads_otherwise_are_refused(schedule: Schedule, cron: str, message: str) -> None:
    assert message in manifest(schedule, "--cron", cron, code=2)


@pytest.mark.parametrize("option", [("--address", "host:1"), ("--store", "s3://other/runs")])
def test_what_the_cluster_file_says_is_not_said_otherwise(schedule: Schedule, option: tuple[str, str]) -> None:
    assert option[0] in manifest(schedule, "--cron", "0 2 * * *", *option, code=2)


@pytest.mark.parametrize("cron", ["0 2 1,15 * *", "*/7 7 * 7 1-5", "0 2 * JUL *"])
def test_cron_lines_that_only_look_so_are_taken(schedule: Schedule, cron: str) -> None:
    assert "RayCronJob" in manifest(schedule, "--cron", cron)


def test_options_reach_the_tick(schedule: Schedule, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def tick(loaded: Any, store: ArtifactStore, due: datetime, options: Options, say: Any) -> Any:
        seen.append((loaded.spec.name, due, options))
        return {"outcome": "nothing"}, 0

    monkeypatch.setattr(ticking, "tick", tick)
    command(schedule, "--once", "--due", "2026-01-01T02:00", "--lease", "9", "--wait", "4")
    ((name, due, options),) = seen
    assert (name, due) == (NAME, datetime(2026, 1, 1, 2, tzinfo=UTC))
    assert (options.lease, options.wait) == (9, 4)


def test_a_damaged_champion_is_named(schedule: Schedule) -> None:
    command(schedule, "--once")
    schedule.store.store.write("champions/tiny/000001.json", b"no")
    said = command(schedule, "--once", code=2)
    assert "champions/tiny/000001.json is damaged" in said
    with pytest.raises(Exception, match="damaged"):
        Champions(schedule.store, NAME)


def test_seconds_are_for_services_only(schedule: Schedule, services: list[Service]) -> None:
    command(schedule, "--cron", "*/5 * * * * *")
    assert services[0].times.seconds


def test_an_empty_folder_is_no_mistake(schedule: Schedule) -> None:
    (schedule.folder / "pairs" / "one.jsonl").unlink()
    assert "nothing new" in command(schedule, "--once")
    assert "none yet" in command(schedule, "--status")
    once = CliRunner().invoke(app, ["check", str(schedule.folder / "spec.yaml")])  # to a run it is one
    assert (once.exit_code, "has no files" in once.output) == (2, True)


def test_a_store_of_this_machine_s_cluster_file_is_the_one_that_is_looked_at(
    schedule: Schedule, services: list[Service]
) -> None:
    place = schedule.folder / "elsewhere"
    (schedule.folder / "local.yaml").write_text(f"kind: local\nstore: {place}\n")
    done = CliRunner().invoke(
        app, ["schedule", str(schedule.folder / "spec.yaml"), "--cron", "0 2 * * *",
              "--cluster", str(schedule.folder / "local.yaml")],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    (service,) = services
    options = job(service).options
    assert service.store.location == str(place)
    assert [options[at + 1] for at, name in enumerate(options) if name == "--store"] == [str(place)]


def test_a_damaged_schedule_is_named(schedule: Schedule) -> None:
    schedule.store.write_json("schedules/tiny/schedule.json", {"host": "x"})
    assert "schedules/tiny/schedule.json is damaged" in command(schedule, "--status", code=2)


def test_a_new_file_without_rows_is_no_mistake(schedule: Schedule) -> None:
    command(schedule, "--once")
    (schedule.folder / "pairs" / "one.jsonl").unlink()
    (schedule.folder / "pairs" / "empty.jsonl").touch()
    assert "nothing: every row" in command(schedule, "--once")
