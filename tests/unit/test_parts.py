"""Tasks become parts, each once, whatever breaks in between. Without Ray: in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from stages.base import Resources, StageError
from stages.io import parts
from stages.io.artifact import Part
from stages.io.context import StageContext
from stages.io.output import Output, PartWriter
from stages.io.parts import _one_task, run_alone, run_parts, slices
from tests import artifacts

SCHEMA = pa.schema([("row", pa.int64())])


class Numbers:
    """Writes the numbers of its task; leaves a line for each try, and breaks at one of them."""

    def __init__(self, log: Path, breaks_at: int = -1) -> None:
        self._log, self._breaks_at = log, breaks_at

    def __call__(self, task: Mapping[str, Any], part: PartWriter) -> None:
        with self._log.open("a") as file:
            file.write(f"{task['part']}\n")
        if task["start"] == self._breaks_at:
            raise StageError("it breaks here")
        rows = pa.table({"row": range(task["start"], task["stop"])}, schema=SCHEMA)
        part.table("rows.arrow", [rows], SCHEMA)
        part.counts["tokens"] = 10 * rows.num_rows

    def close(self) -> None:
        with self._log.open("a") as file:
            file.write("closed\n")


def numbered(output: Output, report: object, text: str) -> str:
    for name in ("one", "two"):
        with output.part(name) as part:
            (part.folder / "text").write_text(f"{text} {name}")
    return text.upper()


def context(folder: Path) -> tuple[StageContext, list[tuple[int, int, str]]]:
    told: list[tuple[int, int, str]] = []
    return StageContext(artifacts.output(folder, "made"), Resources(), lambda *said: told.append(said)), told


def test_rows_are_cut_into_tasks() -> None:
    assert [(task["part"], task["start"], task["stop"], task["rows"]) for task in slices(5, 2)] == [
        ("00000-0-2", 0, 2, 2), ("00001-2-4", 2, 4, 2), ("00002-4-5", 4, 5, 1),
    ]  # fmt: skip
    assert slices(0, 2) == []


def test_what_was_finished_before_a_break_is_not_made_again(tmp_path: Path) -> None:
    worker, log, tasks = "tests.unit.test_parts:Numbers", tmp_path / "log", slices(7, 2)
    with pytest.raises(StageError, match="it breaks here"):
        run_parts(tasks, worker, context(tmp_path)[0], "rows", log=log, breaks_at=4)
    assert log.read_text().split() == ["00000-0-2", "00001-2-4", "00002-4-6", "closed"]
    log.write_text("")
    again, told = context(tmp_path)
    counts = run_parts(tasks, worker, again, "rows", log=log)
    assert log.read_text().split() == ["00002-4-6", "00003-6-7", "closed"]
    assert counts == {"rows": 7, "tokens": 70}
    assert told == [(4, 7, "rows (continued)"), (6, 7, "rows"), (7, 7, "rows")]
    assert artifacts.rows(artifacts.made(again.output), "rows.arrow") == [{"row": row} for row in range(7)]


def test_parts_stand_in_the_order_of_the_tasks_whichever_was_finished_first(tmp_path: Path) -> None:
    worker, log, tasks = "tests.unit.test_parts:Numbers", tmp_path / "log", slices(7, 2)
    run_parts(tasks[2:3], worker, context(tmp_path)[0], "rows", log=log)
    given, _ = context(tmp_path)
    run_parts(tasks, worker, given, "rows", log=log)
    assert artifacts.rows(artifacts.made(given.output), "rows.arrow") == [{"row": row} for row in range(7)]


def test_when_all_is_there_no_worker_is_made(tmp_path: Path) -> None:
    for worker in ("tests.unit.test_parts:Numbers", "nowhere:Nothing"):
        run_parts(slices(3, 2), worker, context(tmp_path)[0], "rows", log=tmp_path / "log")


def test_a_part_that_a_replaced_worker_does_not_name_again_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray passes over as many results of the second try as the first has given; the parts may come in another order."""
    made = parts._made

    def some(*given: Any) -> Iterator[Part]:
        everything = list(made(*given))
        yield from (everything[number] for number in (3, 0, 3))

    monkeypatch.setattr(parts, "_made", some)
    given, _ = context(tmp_path)
    run_parts(slices(7, 2), "tests.unit.test_parts:Numbers", given, "rows", log=tmp_path / "log")
    assert artifacts.rows(artifacts.made(given.output), "rows.arrow") == [{"row": row} for row in range(7)]


class Refuses:
    def __init__(self) -> None:
        raise StageError("no such option")


def test_why_a_worker_cannot_be_made_is_said_when_it_is_called(tmp_path: Path) -> None:
    """Ray would call it a crash of the actor, and try again."""
    actor = parts._Actor("tests.unit.test_parts:Refuses", {}, artifacts.output(tmp_path, "made"), ())
    with pytest.raises(StageError, match="no such option"):
        actor(pa.table({"part": ["a"]}))


def test_parts_of_other_rows_do_not_come_into_the_artifact(tmp_path: Path) -> None:
    """As after a newer version cuts the rows in another way than the run that was interrupted."""
    for size in (1, 3, 2, 5):
        given, _ = context(tmp_path)
        run_parts(slices(5, size), "tests.unit.test_parts:Numbers", given, "rows", log=tmp_path / "log")
        assert artifacts.rows(artifacts.made(given.output), "rows.arrow") == [{"row": row} for row in range(5)]


def test_a_function_may_make_parts_itself(tmp_path: Path) -> None:
    given, _ = context(tmp_path)
    assert run_alone("tests.unit.test_parts:numbered", given, "hello") == "HELLO"
    assert [part.name for part in given.output.parts] == ["one", "two"]


@pytest.mark.parametrize("gpus", [0, 0.5, 2])
def test_a_process_with_a_gpu_ends_with_its_task_so_that_the_next_finds_it_empty(
    gpus: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    class Task:
        def options(self, **options: object) -> Task:
            asked.update(options)
            return self

        def remote(self, *_: object) -> list[object]:
            return []

    def remote(**settings: object) -> Callable[[object], Task]:
        asked.update(settings)
        return lambda _: Task()

    monkeypatch.setattr("ray.remote", remote)
    monkeypatch.setattr("ray.cancel", lambda *_, **__: None)
    assert list(_one_task("rollout", print, options=Resources(gpus=gpus).options(1))) == []
    assert asked["num_gpus"] == gpus
    assert asked["max_calls"] == (1 if gpus else 0)
