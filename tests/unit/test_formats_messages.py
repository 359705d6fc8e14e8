"""What messages keep: everything a chat template may read, as the data has it, whatever container it came in."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from stages.core.errors import RowError
from stages.core.formats import RowParser, parse_prompt
from stages.core.formats.config import FormatConfig
from stages.core.records import Message, PreferencePair
from stages.readers import files, rows

Q, A, B = "Name a colour.", "Blue.", "Seven."
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"unit": "C", "city": "Oslo"}}}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "parameters": {"zeta": {"enum": [1]}, "alpha": {"enum": [2]}}},
    },
    {"type": "function", "function": {"name": "sum", "description": "Adds."}},
]
AGENT: dict[str, Any] = {
    "prompt": [
        {"role": "system", "content": ""},
        {"role": "user", "content": "How warm?", "name": "Ann"},
        {"role": "assistant", "content": "", "reasoning_content": "Look it up.", "tool_calls": [CALL]},
        {"role": "tool", "content": "", "name": "weather", "tool_call_id": "c1"},
    ],
    "chosen": [{"role": "assistant", "content": A, "reasoning_content": "Hm."}],
    "rejected": [{"role": "assistant", "content": A, "reasoning_content": "Well."}],
    "tools": TOOLS,
}


def only(row: dict[str, Any], typed: bool = False, **config: Any) -> PreferencePair:
    (pair,) = RowParser(FormatConfig(**config)).pairs(row, typed)
    return pair


def refused(row: dict[str, Any]) -> RowError:
    with pytest.raises(RowError) as caught:
        RowParser(FormatConfig()).pairs(row)
    return caught.value


def extra(message: Message) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(message.get("extra", "{}"))
    return found


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def test_a_message_keeps_what_a_template_may_read() -> None:
    pair = only(AGENT)
    assert [extra(m) for m in pair.prompt] == [
        {}, {"name": "Ann"}, {"reasoning_content": "Look it up.", "tool_calls": [CALL]},
        {"name": "weather", "tool_call_id": "c1"},
    ]  # fmt: skip
    assert extra(pair.chosen[0]) == {"reasoning_content": "Hm."}
    assert pair.chosen != pair.rejected


def test_empty_turns_that_mean_something_stay() -> None:
    assert [m["content"] for m in only(AGENT).prompt] == ["", "How warm?", "", ""]
    for role in ("user", "assistant"):
        talk = [user("Hi"), {"role": "assistant", "content": "Yes?"}, user("So")]
        talk[0 if role == "user" else 1] = {"role": role, "content": " "}  # type: ignore[typeddict-item]
        assert refused({**AGENT, "prompt": talk}).reason == "empty"


def test_keys_keep_their_order() -> None:
    pair = only(AGENT)
    assert pair.tools == json.dumps(TOOLS)
    assert list(extra(pair.prompt[2])["tool_calls"][0]["function"]["arguments"]) == ["unit", "city"]


def test_what_is_not_json_is_no_field_of_a_message() -> None:
    odd = {"role": "user", "content": Q, "seen": object(), "score": float("nan"), "name": None, "tool_calls": []}
    assert only({"prompt": [odd], "chosen": A, "rejected": B}).prompt == (user(Q),)


def test_a_call_that_is_none_is_refused() -> None:
    for calls, reason in (("[", "not JSON"), ({"a": 1}, "a list of objects"), (["x"], "a list of objects")):
        talk = [user(Q), {"role": "assistant", "content": "", "tool_calls": calls}, user("So?")]
        error = refused({"prompt": talk, "chosen": A, "rejected": B})
        assert reason in error.reason
        assert error.field == "prompt[1].tool_calls"


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    "rows.jsonl": lambda path, data: path.write_text("\n".join(map(json.dumps, data))) and None,
    "rows.parquet": lambda path, data: parquet.write_table(pa.Table.from_pylist(data), path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_row_is_the_same_pair_from_every_container(name: str, tmp_path: Path) -> None:
    """In Parquet every message, call and schema has the fields of all the others, as nulls."""
    other = {**AGENT, "prompt": [user(Q)], "chosen": [assistant(A)], "rejected": [assistant(B)]}
    data = [
        AGENT,
        {**other, "tools": [{"type": "function", "function": {"name": "x", "parameters": {"beta": {"enum": [1]}}}}]},
    ]
    WRITERS[name](tmp_path / name, data)
    parser = RowParser(FormatConfig())
    found = [pair for row in rows(files(name, tmp_path)[0]) for pair in parser.pairs(dict(row.value), row.typed)]  # type: ignore[arg-type]
    assert found == [only(row) for row in data]


def test_a_null_that_the_user_wrote_stays() -> None:
    tools = [{"function": {"name": "f", "parameters": {"default": None}}}]
    assert json.loads(only({**AGENT, "tools": tools}).tools) == tools
    assert json.loads(only({**AGENT, "tools": tools}, typed=True).tools) == [
        {"function": {"name": "f", "parameters": {}}}
    ]


@pytest.mark.parametrize("write", [json.dumps, repr, lambda value: json.dumps(value, indent=1)])
def test_messages_written_into_a_cell_are_messages(write: Callable[[Any], str], tmp_path: Path) -> None:
    row = {"prompt": [user(Q)], "chosen": [assistant(A)], "rejected": [assistant('It\'s "7".')]}
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([row.keys(), map(write, row.values())])
    (read,) = rows(files(path.name, tmp_path)[0])
    assert only(dict(read.value)) == only(row)  # type: ignore[arg-type]
    assert parse_prompt({"prompt": write([user(Q)])}).messages == (user(Q),)
    assert parse_prompt({"prompt": write(user(Q))}).messages == (user(Q),)


def test_text_that_only_looks_like_messages() -> None:
    unreadable = "[{'role': 'user', 'content': 'Hi'}\n {'role': 'user', 'content': 'Ho'}]"  # as numpy prints them
    assert "write it as JSON" in refused({"prompt": unreadable, "chosen": A, "rejected": B}).reason
    for text in ('{"role": "admin", "level": 3}', '{"content": "x"}', '[{"value": 1}]', "{'a': 1}", "[1, 2]", "{role}"):
        assert only({"prompt": text, "chosen": A, "rejected": B}).prompt == (user(text),)


HISTORY = [user("Hi"), assistant("Hello")]
LAST = user(Q)


@pytest.mark.parametrize("given", [HISTORY, [*HISTORY, LAST], [LAST], Q, None, HISTORY[:1]])
def test_the_history_in_the_prompt_column_is_kept(given: Any) -> None:
    shared = [*HISTORY, LAST] if given == HISTORY[:1] else [LAST]
    rows = [
        {"chosen": [*shared, assistant(A)], "rejected": [*shared, assistant(B)]},
        {"responses": [[*shared, assistant(A)], [*shared, assistant(B)]], "scores": [2, 1]},
        {"response_a": [*shared, assistant(A)], "response_b": [*shared, assistant(B)], "winner": "a"},
        {"completion": [*shared, assistant(A)], "label": True},
    ]
    for row in rows:
        pair = only({**row, "prompt": given})
        assert pair.prompt == tuple([LAST] if given in (Q, [LAST], None) else [*HISTORY, LAST])
        assert pair.chosen == (assistant(A),)


@pytest.mark.parametrize("column", ["prompt", "messages", "conversations"])
def test_a_column_with_the_whole_conversation_gives_no_answer_away(column: str) -> None:
    for asked in ([LAST], [*HISTORY, LAST]):
        whole = [*asked, assistant(A)]
        pair = only({column: whole, "chosen": whole, "rejected": [*asked, assistant(B)]})
        assert pair.prompt == tuple(asked)


def test_prompts_that_fit_but_for_white_space_or_a_system_turn() -> None:
    system: Message = {"role": "system", "content": "Be brief."}
    talk = [*HISTORY, LAST]
    sides = {"chosen": [system, *talk, assistant(A)], "rejected": [system, *talk, assistant(B)]}
    assert only({**sides, "prompt": talk}).prompt == (system, *talk)
    assert only({**sides, "prompt": [{**m, "content": m["content"] + " "} for m in talk]}).prompt == (system, *talk)
    sides = {"chosen": [*talk, assistant(A)], "rejected": [*talk, assistant(B)]}
    assert only({**sides, "prompt": [system]}).prompt == (system, *talk)


@pytest.mark.parametrize(
    "text",
    ['{"content": "x"}\n\nThat is the object.', '{"value": 3, // c', "{ 'content': attr(title) }",
     '{"from": 1}\n{"from": 2}',
     '{"role": "user", "content": "Hi"}\nFix this JSON', '{"role": "doctor", "content": "hi"}',
     '[{"role": "admin", "value": 3}]', '{"value": 3, // c\n}'],
)  # fmt: skip
def test_answers_that_are_json_or_code_stay_text(text: str) -> None:
    assert only({"prompt": text, "chosen": text, "rejected": B}).chosen == (assistant(text),)


def test_a_history_that_does_not_fit_is_refused() -> None:
    sides = {"chosen": [LAST, assistant(A)], "rejected": [LAST, assistant(B)]}
    for given in ("Else", [user("Else")], [*HISTORY, user("Else")]):
        assert refused({**sides, "prompt": given}).field == "prompt"
    other = [user("Else"), assistant(B)]
    for row in (
        {"responses": [[LAST, assistant(A)], other], "scores": [2, 1]},
        {"response_a": [LAST, assistant(A)], "response_b": other, "winner": "a"},
    ):
        assert "prompt" in refused(row).reason


def test_turns_may_differ_in_what_no_template_reads() -> None:
    sides = {
        name: [{**user("Hi"), "id": name}, {**assistant("Hello"), "model": name}, LAST, assistant(text)]
        for name, text in (("chosen", A), ("rejected", B))
    }
    assert len(only(sides).prompt) == 3
    sides["rejected"][1] = {**assistant("Hello"), "reasoning_content": "else"}  # type: ignore[typeddict-unknown-key]
    assert "differ before their last message" in refused(sides).reason


def test_prompts_have_tools() -> None:
    prompt = parse_prompt({"prompt": Q, "tools": TOOLS})
    assert json.loads(prompt.tools) == TOOLS
    assert prompt.prompt_id != parse_prompt({"prompt": Q}).prompt_id
    assert parse_prompt({"input": {"messages": [user(Q)], "tools": TOOLS}}) == parse_prompt(
        {"prompt": Q, "tools": TOOLS}
    )


def own(row: dict[str, Any]) -> PreferencePair:
    return PreferencePair([{"role": "human", "content": Q, "name": "Ann"}], [assistant(A)], [assistant(B)])  # type: ignore[typeddict-unknown-key]


def again(row: dict[str, Any]) -> PreferencePair:
    return only(AGENT)


def test_a_pair_that_the_users_code_made_keeps_its_messages_fields() -> None:
    made = only({}, format={"use": f"{__name__}:own"})
    assert made.prompt == ({"role": "user", "content": Q, "extra": '{"name": "Ann"}'},)
    assert only({}, format={"use": f"{__name__}:again"}) == only(AGENT)
