"""What becomes of prompts that cannot be answered, without Ray."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from stages.base import RolloutResources, StageError
from stages.core.records import PROMPTS
from stages.core.tokens.templates import ChatEncoder
from stages.generate import rollout
from stages.generate.config import RolloutConfig
from stages.generate.engine import Engine, Sample
from stages.generate.generator import Generator
from stages.io import streams
from stages.io.artifact import Part
from stages.io.context import StageContext
from stages.io.filenames import RECORDS
from stages.io.output import Output
from stages.io.streams import Task
from stages.io.tables import Rows
from tests import artifacts, tiny

TOOLS = "{{ tools[0].name if tools else 'none' }}"
STRICT = "{% if messages|length > 1 %}{{ raise_exception('one turn only') }}{% endif %}{{ messages[0].content }}"


class Repeats(Engine):
    """Says every prompt again; a step answers the shortest that is there, and counts those that wait."""

    def __init__(self, room: int = 1) -> None:
        self.room, self.prompts, self.waiting = room, {}, []

    def add(self, key: Any, prompt: Sequence[int]) -> None:
        self.prompts[key] = list(prompt)

    def step(self) -> list[tuple[Any, list[Sample]]]:
        self.waiting.append(len(self.prompts))
        key = min(self.prompts, key=lambda key: len(self.prompts[key]))
        return [(key, [Sample(self.prompts.pop(key), "stop")])]

    def close(self) -> None: ...


def answer(made: Generator, output: Output, *tasks: Task) -> list[Part]:
    return list(streams.streamed(made, streams.taken_from(tasks), output))


def generator(folder: Path, template: str, rows: Sequence[Mapping[str, Any]], room: int = 1) -> Generator:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    made = object.__new__(Generator)
    made.config = RolloutConfig(samples=1, max_tokens=2, max_length=64)
    made.encoder, made.engine = ChatEncoder(tokenizer), Repeats(room)
    made.policy = made.sampling = ""
    prompts = artifacts.of_rows(folder, "prompts", RECORDS, [rows[:1], rows[1:]], PROMPTS)
    made.prompts = Rows(prompts.tables(RECORDS))
    return made


def test_what_the_template_refuses_is_in_quarantine_with_its_reason_and_the_others_are_answered(tmp_path: Path) -> None:
    asked = [["One?"], ["One?", "Two?"], ["Three?"]]
    rows = [
        {"prompt_id": str(number), "messages": [{"role": "user", "content": text} for text in texts], "source": "f:1"}
        for number, texts in enumerate(asked)
    ]
    output = artifacts.output(tmp_path, "rollouts")
    (part,) = answer(generator(tmp_path, STRICT, rows), output, {"part": "a", "start": 0, "stop": 3})
    output.parts.append(part)
    made = artifacts.rows(artifacts.made(output), RECORDS)
    assert [(row["prompt_id"], row["text"]) for row in made] == [("0", "One?"), ("2", "Three?")]
    assert all(row["ids"] == row["prompt_ids"] for row in made)
    (reason,) = part.counts["quarantine_reasons"]
    assert "one turn only; the roles come as user, user" in reason
    assert {name: part.counts[name] for name in ("rows", "quarantined", "cut_off", "empty")} == {
        "rows": 2, "quarantined": 1, "cut_off": 0, "empty": 0,
    }  # fmt: skip


def test_the_tools_of_a_prompt_reach_the_template(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "Hi"}]
    rows = [{"prompt_id": "a", "messages": said, "tools": '[{"name": "add"}]', "source": "f:1"},
            {"prompt_id": "b", "messages": said, "tools": "", "source": "f:2"}]  # fmt: skip
    output = artifacts.output(tmp_path, "rollouts")
    output.parts.extend(answer(generator(tmp_path, TOOLS, rows), output, {"part": "a", "start": 0, "stop": 2}))
    made = artifacts.rows(artifacts.made(output), RECORDS)
    assert [(row["text"], row["tools"]) for row in made] == [("add", rows[0]["tools"]), ("none", "")]


PLAIN = "{{ messages[0].content }}"


def asked(*texts: str) -> list[dict[str, Any]]:
    return [
        {"prompt_id": str(number), "messages": [{"role": "user", "content": text}], "source": f"f:{number}"}
        for number, text in enumerate(texts)
    ]


def cut(*stops: int) -> list[Task]:
    starts = (0, *stops)
    return [{"part": f"{start:05d}", "start": start, "stop": stop} for start, stop in zip(starts, stops, strict=False)]


def test_no_part_waits_for_the_longest_answer_of_another_while_the_engine_has_room(tmp_path: Path) -> None:
    long = "a b c d e f g h i j k l m n o p"
    made = generator(tmp_path, PLAIN, asked("a", long, "b", "c", "d", "e"), room=3)
    parts = answer(made, artifacts.output(tmp_path, "rollouts"), *cut(2, 4, 6))
    assert [part.name for part in parts] == ["00002", "00004", "00000"]
    assert [part.rows for part in parts] == [2, 2, 2]
    assert made.engine.waiting == [4, 3, 4, 3, 2, 1]  # a part of two is begun whenever fewer than three wait


def test_a_part_of_which_every_prompt_is_refused_is_written_and_the_next_are_made(tmp_path: Path) -> None:
    tokens = " ".join(["word"] * 99)
    made = generator(tmp_path, PLAIN, asked(tokens, tokens, "b", "c"), room=9)
    parts = answer(made, artifacts.output(tmp_path, "rollouts"), *cut(2, 4))
    assert {part.name: (part.rows, part.counts["quarantined"]) for part in parts} == {
        "00000": (0, 2), "00002": (2, 0),
    }  # fmt: skip


def test_an_engine_is_told_of_its_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}

    def run_parts(*given: Any, **arguments: Any) -> dict[str, Any]:
        told.update(arguments)
        return {"rows": 1, "empty": 0, "quarantined": 0}

    monkeypatch.setattr(rollout, "run_parts", run_parts)
    prompts = artifacts.of_rows(tmp_path, "prompts", RECORDS, [asked("a")], PROMPTS)
    output = artifacts.output(tmp_path, "rollouts")
    context = StageContext(output, RolloutResources(tensor_parallel=2), lambda *said: None)
    rollout.run(RolloutConfig(), {"prompts": prompts, "policy": prompts}, context)
    assert told["gpus"] == 2


class Odd(Exception):
    def __init__(self, *, number: int) -> None:
        super().__init__(f"number {number}")


class Echo:
    """Makes a part of every task; stops at one that says so."""

    def stream(self, take: streams.Take) -> Iterator[tuple[Task, streams.Write]]:
        while True:
            task = take(True)
            assert task is not None
            if task["part"] == "bad":
                raise StageError("no more")
            if task["part"] == "worse":
                raise Odd(number=3)
            yield task, lambda part: None


def test_many_threads_share_a_worker_and_each_gets_its_part(tmp_path: Path) -> None:
    shared = streams.Shared(Echo(), artifacts.output(tmp_path, "shared"))
    tasks = [{"part": f"{number:05d}"} for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert [part.name for part in pool.map(shared, tasks)] == [task["part"] for task in tasks]


def test_all_threads_hear_why_a_shared_worker_stopped(tmp_path: Path) -> None:
    shared = streams.Shared(Echo(), artifacts.output(tmp_path, "shared"))
    heard = []
    for task in ({"part": "bad"}, {"part": "late"}):
        with pytest.raises(StageError, match="no more") as caught:
            shared(task)
        heard.append(caught.value)
    assert heard[0] is not heard[1]  # Ray writes into each
    assert all(isinstance(error.__cause__, StageError) for error in heard)


def test_an_error_that_cannot_be_copied_is_heard_too(tmp_path: Path) -> None:
    shared = streams.Shared(Echo(), artifacts.output(tmp_path, "shared"))
    with pytest.raises(RuntimeError, match="Odd: number 3"):
        shared({"part": "worse"})
