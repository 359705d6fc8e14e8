"""What becomes of prompts that cannot be answered, without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from stages.core.records import PROMPTS
from stages.core.tokens.templates import ChatEncoder
from stages.generate.config import RolloutConfig
from stages.generate.engines import Sample
from stages.generate.generator import Generator
from stages.generate.serving import REFUSED
from stages.io.tables import write_rows
from tests import tiny

TOOLS = "{{ tools[0].name if tools else 'none' }}"
STRICT = "{% if messages|length > 1 %}{{ raise_exception('one turn only') }}{% endif %}{{ messages[0].content }}"


class Repeats:
    def generate(self, prompts: Sequence[Sequence[int]]) -> list[list[Sample]]:
        return [[Sample(list(prompt), "stop")] for prompt in prompts]

    def close(self) -> None: ...


def test_what_the_template_refuses_is_a_row_with_its_reason_and_the_others_are_answered(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = STRICT
    generator = object.__new__(Generator)
    generator.config = RolloutConfig(samples=1, max_tokens=2, max_length=64)
    generator.encoder, generator.engine = ChatEncoder(tokenizer), Repeats()
    generator.policy = generator.sampling = ""
    asked = [["One?"], ["One?", "Two?"], ["Three?"]]
    rows = [
        {"prompt_id": str(number), "messages": [{"role": "user", "content": text} for text in texts], "source": "f:1"}
        for number, texts in enumerate(asked)
    ]
    write_rows(tmp_path / "prompts.arrow", rows, PROMPTS)
    task = pa.Table.from_pylist([{"file": str(tmp_path / "prompts.arrow"), "start": 0, "stop": 3}])
    (made,) = generator(task)
    assert [(row["prompt_id"], row["text"]) for row in made.to_pylist() if row["refused"] is None] == [
        ("0", "One?"), ("2", "Three?"),
    ]  # fmt: skip
    assert [row["ids"] for row in made.to_pylist() if row["refused"] is None] == [
        row["prompt_ids"] for row in made.to_pylist() if row["refused"] is None
    ]
    (refused,) = (row for row in made.to_pylist() if row["finish_reason"] == REFUSED)
    assert refused["prompt_id"] == "1"
    assert "one turn only; the roles come as user, user" in refused["refused"][1]


def test_the_tools_of_a_prompt_reach_the_template(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = TOOLS
    generator = object.__new__(Generator)
    generator.config = RolloutConfig(samples=1, max_tokens=2, max_length=64)
    generator.encoder, generator.engine = ChatEncoder(tokenizer), Repeats()
    generator.policy = generator.sampling = ""
    said = [{"role": "user", "content": "Hi"}]
    rows = [{"prompt_id": "a", "messages": said, "tools": '[{"name": "add"}]', "source": "f:1"},
            {"prompt_id": "b", "messages": said, "tools": "", "source": "f:2"}]  # fmt: skip
    write_rows(tmp_path / "prompts.arrow", rows, PROMPTS)
    task = pa.Table.from_pylist([{"file": str(tmp_path / "prompts.arrow"), "start": 0, "stop": 2}])
    (made,) = generator(task)
    assert [(row["text"], row["tools"]) for row in made.to_pylist()] == [("add", rows[0]["tools"]), ("none", "")]
