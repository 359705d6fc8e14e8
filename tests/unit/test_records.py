from __future__ import annotations

import pickle
from dataclasses import replace

import pyarrow as pa
import pytest

from stages.core.errors import NoPair, RowError
from stages.core.records import (
    PAIRS,
    PROMPTS,
    Message,
    PairIds,
    PreferencePair,
    Prompt,
    Vote,
    content_id,
    id_numbers,
    messages_of,
    pair_of,
    pair_row,
    prompt_key,
    prompt_row,
)


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def test_a_content_id_depends_on_content_alone() -> None:
    assert content_id({"a": 1, "b": [2]}) == content_id({"b": [2], "a": 1})
    assert content_id([1, 2]) != content_id([2, 1])
    assert content_id("é") != content_id("e\u0301")


def test_content_ids_never_change() -> None:
    """The first 16 hexadecimal digits of the SHA-256 of the compact form that Python's json writes with sorted keys:

    printf '[{"content": "Hi", "role": "user"}]' | sha256sum
    """
    assert content_id([{"role": "user", "content": "Hi"}]) == "b03cbbe7211f66c1"


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("Name a colour.", "name A COLOUR."),
        ("Name a colour.", "  Name\n a\t\tcolour. "),
        ("STRASSE", "straße"),
        ("a\u00a0b", "a b"),
    ],
)
def test_prompts_that_differ_in_case_or_white_space_have_one_key(a: str, b: str) -> None:
    assert prompt_key([user(a)]) == prompt_key([user(b)])


def test_other_prompts_have_other_keys() -> None:
    prompts = [
        [user("Name a colour.")],
        [user("Name a colour")],
        [user("Namea colour.")],
        [{"role": "system", "content": "Name a colour."}],
        [user("Name a"), user("colour.")],
        [user("Name a colour."), assistant("Blue."), user("Another?")],
    ]
    assert len({prompt_key(prompt) for prompt in prompts}) == len(prompts)


def test_ids_are_read_as_the_numbers_that_they_write() -> None:
    ids = [content_id(n) for n in range(50)] + ["0" * 16, "f" * 16, "00000000000000a1"]
    column = pa.chunked_array([ids[:7], [], ids[7:]], pa.string())
    assert id_numbers(column).tolist() == [int(each, 16) for each in ids]
    assert id_numbers(column.slice(5, 9)).tolist() == [int(each, 16) for each in ids[5:14]]
    assert id_numbers(column.slice(0, 0)).tolist() == []
    with pytest.raises(pa.ArrowInvalid):
        id_numbers(pa.chunked_array([["abc"]]))


def test_a_pair_id_depends_on_all_texts_and_on_nothing_else() -> None:
    pair = PreferencePair([user("q")], [assistant("a")], [assistant("b")])
    same = PreferencePair(({"content": "q", "role": "user"},), (assistant("a"),), (assistant("b"),), source="elsewhere")
    others = [
        PreferencePair([user("Q")], [assistant("a")], [assistant("b")]),
        PreferencePair([user("q")], [assistant("b")], [assistant("a")]),
        PreferencePair([user("q")], [assistant("a")], [assistant("c")]),
    ]
    assert pair.pair_id == same.pair_id
    assert len({pair.pair_id, *(other.pair_id for other in others)}) == 4


def test_a_pair_comes_back_from_its_row() -> None:
    call = Message(role="assistant", content="", extra='{"tool_calls": [{"name": "add"}]}')
    votes = (Vote(annotator="ann", preference=1.0), Vote(annotator="bob", preference=None))
    pair = PreferencePair(
        (user("q"), call), (assistant("a"),), (assistant("b"),), False, True, 0.75, "file:1",
        weight=0.5, kind="safety", tools="[]", votes=votes, ids=PairIds([1], [2, 3], [4]),
    )  # fmt: skip
    row = pa.Table.from_pylist([pair_row(pair)], schema=PAIRS).to_pylist()[0]
    back = pair_of(row)
    assert back == pair
    assert row["pair_id"] == back.pair_id
    assert row["prompt_key"] == prompt_key(pair.prompt)


def test_the_tools_belong_to_what_a_pair_is() -> None:
    pair = PreferencePair((user("q"),), (assistant("a"),), (assistant("b"),))
    assert replace(pair, tools="[]").pair_id != pair.pair_id


def test_a_prompt_comes_back_from_its_row() -> None:
    prompt = Prompt("id", [user("q")], "[]", "{}")
    row = pa.Table.from_pylist([prompt_row(prompt, "file:1")], schema=PROMPTS).to_pylist()[0]
    assert {**row, "messages": messages_of(row["messages"])} == {
        "prompt_id": "id", "messages": (user("q"),), "tools": "[]", "metadata": "{}", "source": "file:1",
    }  # fmt: skip


@pytest.mark.parametrize("error", [RowError("field", "reason"), NoPair("", "reason")])
def test_why_a_row_is_refused_survives_the_way_to_another_process(error: RowError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), back.field, back.reason, str(back)) == (type(error), error.field, error.reason, str(error))
