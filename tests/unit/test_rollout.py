"""What becomes of prompts that cannot be answered, without Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.core.records import PROMPTS
from stages.core.tokens.templates import ChatEncoder
from stages.generate.config import RolloutConfig
from stages.generate.engines import Sample
from stages.generate.generator import Generator
from stages.io.filenames import RECORDS
from stages.io.tables import Rows
from tests import artifacts, tiny

TOOLS = "{{ tools[0].name if tools else 'none' }}"
STRICT = "{% if messages|length > 1 %}{{ raise_exception('one turn only') }}{% endif %}{{ messages[0].content }}"


class Repeats:
    def generate(self, prompts: Sequence[Sequence[int]]) -> list[list[Sample]]:
        return [[Sample(list(prompt), "stop")] for prompt in prompts]

    def close(self) -> None: ...


def generator(folder: Path, template: str, rows: Sequence[Mapping[str, Any]]) -> Generator:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    made = object.__new__(Generator)
    made.config = RolloutConfig(samples=1, max_tokens=2, max_length=64)
    made.encoder, made.engine = ChatEncoder(tokenizer), Repeats()
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
    with output.part("00000") as part:
        generator(tmp_path, STRICT, rows)({"start": 0, "stop": 3}, part)
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
    with output.part("00000") as part:
        generator(tmp_path, TOOLS, rows)({"start": 0, "stop": 2}, part)
    made = artifacts.rows(artifacts.made(output), RECORDS)
    assert [(row["text"], row["tools"]) for row in made] == [("add", rows[0]["tools"]), ("none", "")]
