from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from stages.core.errors import RowError
from stages.core.formats import parse_pair, parse_prompt

ROW: dict[str, Any] = {"prompt": "Name a colour.", "chosen": "Blue.", "rejected": "Seven."}


def pair_error(**changes: Any) -> RowError:
    """The error of a good row with some fields changed; a field given as ... is left out."""
    row = {name: value for name, value in {**ROW, **changes}.items() if value is not ...}
    with pytest.raises(RowError) as caught:
        parse_pair(row)
    return caught.value


def test_text_stands_for_one_message() -> None:
    pair = parse_pair(ROW)
    assert list(pair.prompt) == [{"role": "user", "content": "Name a colour."}]
    assert list(pair.chosen) == [{"role": "assistant", "content": "Blue."}]
    assert list(pair.rejected) == [{"role": "assistant", "content": "Seven."}]
    assert pair.probability == 1.0
    assert pair.chosen_ended
    assert pair.rejected_ended


def test_messages_are_kept_in_order() -> None:
    prompt = [
        {"role": "system", "content": "Be brief.", "weight": 3},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "tool", "content": "42"},
        {"role": "user", "content": "  A colour?\n"},
    ]
    pair = parse_pair({**ROW, "prompt": prompt, "chosen": [{"role": "assistant", "content": "Blue."}]})
    assert [m["role"] for m in pair.prompt] == ["system", "user", "assistant", "tool", "user"]
    assert pair.prompt[0] == {"role": "system", "content": "Be brief.", "extra": '{"weight": 3}'}
    assert all(set(m) == {"role", "content"} for m in pair.prompt[1:])
    assert pair.prompt[-1]["content"] == "  A colour?\n"


def test_text_and_the_message_it_stands_for_are_the_same_prompt() -> None:
    text = parse_prompt({"prompt": "Hi"})
    other = parse_prompt({"prompt": [{"role": "user", "content": "Hi"}], "answer": 1, "raw": b"x"})
    assert other == replace(text, metadata='{"answer": 1}')  # for judges; the prompt is the same
    assert text.prompt_id != parse_prompt({"prompt": [{"role": "system", "content": "Hi"}]}).prompt_id


@pytest.mark.parametrize("field", ["prompt", "chosen", "rejected"])
@pytest.mark.parametrize(
    ("value", "where", "reason"),
    [
        (..., "", "missing"),
        (None, "", "missing"),
        (7, "", "expected text or a list of messages, found a number"),
        (True, "", "found a boolean"),
        ({"speaker": "user", "content": "x"}, ".role", "expected one of system, user, assistant, tool, found None"),
        ([], "", "no messages"),
        ("", ".content", "empty"),
        (" \n\t", ".content", "empty"),
        ("half \ud83d of a pair", ".content", "surrogate"),
        (["text"], "[0]", "expected a message {role, content}, found text"),
        ([None], "[0]", "found nothing"),
        ([{"role": "robot", "content": "x"}], "[0].role", "expected one of system, user, assistant, tool"),
        ([{"content": "x"}], "[0].role", "found None"),
        ([{"role": ["user"], "content": "x"}], "[0].role", "expected one of"),
        ([{"role": "assistant"}], "[0].content", "expected text, found nothing"),
        ([{"role": "assistant", "content": {}}], "[0].content", "expected text, found an object"),
        ([{"role": "assistant", "content": [7]}], "[0].content[0]", "expected a part {type: text, text}"),
        ([{"role": "assistant", "content": [{"type": "image_url"}]}], "[0].content[0]", "only text can be used"),
        ([{"role": "assistant", "content": " "}], "[0].content", "empty"),
        ([{"role": "assistant", "content": "\udc00"}], "[0].content", "surrogate"),
    ],
)
def test_a_bad_field_is_named_with_the_reason(field: str, value: Any, where: str, reason: str) -> None:
    error = pair_error(**{field: value})
    assert error.field == field + where
    assert reason in error.reason
    assert str(error) == f"{error.field}: {error.reason}"


def test_a_missing_field_names_the_fields_that_are_there() -> None:
    error = pair_error(prompt=..., topic="Name a colour.")
    assert all(name in error.reason for name in ("chosen", "rejected", "topic"))
    with pytest.raises(RowError, match="no fields"):
        parse_prompt({})


def test_a_reason_can_be_written_down_whatever_the_row_holds() -> None:
    with pytest.raises(RowError) as caught:
        parse_prompt({"\ud800": 1})
    assert str(caught.value).encode()


def test_a_prompt_that_ends_with_the_assistant_is_refused() -> None:
    prompt = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert pair_error(prompt=prompt).field == "prompt"
    with pytest.raises(RowError, match="ends with the assistant's turn"):
        parse_prompt({"prompt": prompt})


@pytest.mark.parametrize("field", ["chosen", "rejected"])
def test_a_response_is_one_assistant_message(field: str) -> None:
    user = {"role": "user", "content": "x"}
    assistant = {"role": "assistant", "content": "y"}
    for messages in ([user], [user, assistant], [assistant, assistant]):
        error = pair_error(**{field: messages})
        assert error.field == field
        assert "one assistant message" in error.reason


def test_equal_responses_are_refused() -> None:
    error = pair_error(chosen="Blue.", rejected=[{"role": "assistant", "content": "Blue."}])
    assert error.field == "rejected"
    assert "same text" in error.reason


@pytest.mark.parametrize("value", [0, 1, 0.0, 0.25, 1.0])
def test_a_preference_probability_is_kept(value: float) -> None:
    assert parse_pair({**ROW, "preference_probability": value}).probability == value


@pytest.mark.parametrize(
    "value",
    [-0.01, 1.01, float("nan"), float("inf"), pytest.param(10**400, id="huge"), True, False, "0.5", [0.5], {}],
)
def test_a_preference_probability_that_is_none_is_refused(value: Any) -> None:
    assert pair_error(preference_probability=value).field == "preference_probability"


@pytest.mark.parametrize("label", [True, False])
def test_a_single_answer_stands_on_the_side_that_its_label_says(label: bool) -> None:
    pair = parse_pair({"prompt": "Hi", "completion": "Hello", "label": label})
    answer = ({"role": "assistant", "content": "Hello"},)
    assert (pair.chosen, pair.rejected) == ((answer, ()) if label else ((), answer))
    assert not pair.paired
    assert parse_pair({"prompt": "Hi", "chosen": "a", "rejected": "b"}).paired


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({"prompt": "Hi", "completion": "a"}, "label", "good answer.*missing"),
        ({"prompt": "Hi", "completion": "a", "label": 2}, "label", "expected true .* found 2"),
        ({"prompt": "Hi", "completion": "a", "label": "perhaps"}, "label", "found 'perhaps'"),
        ({"prompt": "Hi", "completion": "a", "label": [True]}, "label", "found .True."),
        ({"prompt": "Hi", "completion": " ", "label": True}, "completion.content", "empty"),
        ({"prompt": "Hi", "completion": "a", "chosen": "b", "label": True}, "completion", "comes with chosen"),
    ],
)
def test_a_single_answer_that_cannot_be_used_says_why(row: dict[str, Any], field: str, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_pair(row)
    assert caught.value.field == field
    assert re.search(reason, caught.value.reason)
