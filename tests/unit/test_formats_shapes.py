"""Rows of every shape that people have, and the pairs that they become."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages.core.errors import NoPair, RowError
from stages.core.formats import RowParser, detect, parse_prompt
from stages.core.formats.config import FormatConfig
from stages.core.records import PreferencePair

Q, A, B = "Name a colour.", "Blue.", "Seven."


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def said(name: str, value: str) -> dict[str, str]:
    return {"from": name, "value": value}


TALK = [message("user", Q)]
SHAPES: dict[str, list[dict[str, Any]]] = {
    "preference": [
        {"prompt": Q, "chosen": A, "rejected": B},
        {"prompt": TALK, "chosen": [message("assistant", A)], "rejected": [message("assistant", B)]},
        {"chosen": [*TALK, message("assistant", A)], "rejected": [*TALK, message("assistant", B)]},
        {"prompt": Q, "chosen": [*TALK, message("assistant", A)], "rejected": [*TALK, message("assistant", B)]},
        {"prompt": Q, "chosen_response": A, "rejected_response": B},
        {"question": Q, "chosen": A, "rejected": B},
        {"input": {"messages": TALK}, "preferred_output": [message("assistant", A)],
         "non_preferred_output": [message("assistant", B)]},
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": Q}]}], "chosen": A, "rejected": B},
    ],
    "transcript": [
        {"chosen": f"\n\nHuman: {Q}\n\nAssistant: {A}", "rejected": f"\n\nHuman: {Q}\n\nAssistant: {B}"},
        {"chosen": f"Human: {Q}\n\nAssistant: {A}", "rejected": f"Human: {Q}\n\nAssistant: {B}"},
    ],
    "sharegpt": [{"conversations": [said("human", Q)], "chosen": said("gpt", A), "rejected": said("gpt", B)}],
    "scored": [
        {"instruction": Q, "completions": [{"response": B, "overall_score": 2}, {"response": A, "overall_score": 8.5}]},
        {"prompt": Q, "completions": [{"response": A, "score": "4"}, {"response": B, "score": "N/A"},
                                      {"response": B, "score": "1"}]},
        {"prompt": Q, "completions": [
            {"response": B, "annotations": {"honesty": {"Rating": "5"}, "truth": {"Rating": "1"}}},
            {"response": A, "annotations": {"honesty": {"Rating": "4"}, "truth": {"Rating": "N/A"}}},
        ]},
    ],
    "ranked": [
        {"prompt": Q, "responses": [B, A], "scores": [0.1, 0.7]},
        {"prompt": Q, "responses": [B, A], "ranks": [2, 1]},
    ],
    "votes": [
        {"instruction": Q, "response1": B, "response2": A, "annotator1": 2, "annotator2": 2, "annotator3": 0},
        {"prompt": Q, "chosen": A, "rejected": B, "votes": [1, 0.5, 1]},
        {"prompt": Q, "output_1": A, "output_2": B, "votes": {"1": 2, "tie": 1}},
    ],
    "choice": [
        {"input": Q, "output_1": A, "output_2": B, "label": 1},
        {"prompt": Q, "response_0": B, "response_1": A, "better_response_id": 1},
        {"prompt": Q, "response_a": A, "response_b": B, "winner": "model_a"},
        {"prompt": Q, "completion_a": B, "completion_b": A, "preference": "b-is-better"},
        {"messages": TALK, "candidates": [B, A], "preferred": 1},
    ],
    "alpaca_eval": [{"instruction": Q, "output_1": B, "output_2": A, "preference": 2.0}],
}  # fmt: skip
EXAMPLES = [pytest.param(name, row, id=f"{name}-{i}") for name, rows in SHAPES.items() for i, row in enumerate(rows)]


def parse(row: dict[str, Any], **config: Any) -> list[PreferencePair]:
    return RowParser(FormatConfig(**config)).pairs(row)


def only(row: dict[str, Any], **config: Any) -> PreferencePair:
    (pair,) = parse(row, **config)
    return pair


def refused(row: dict[str, Any], **config: Any) -> RowError:
    with pytest.raises(RowError) as caught:
        parse(row, **config)
    return caught.value


def text(pair: PreferencePair) -> tuple[str, str, str]:
    chosen, rejected = (side[0]["content"] if side else "" for side in (pair.chosen, pair.rejected))
    return pair.prompt[-1]["content"], chosen, rejected


@pytest.mark.parametrize(("shape", "row"), EXAMPLES)
def test_a_row_is_recognised_and_becomes_the_pair(shape: str, row: dict[str, Any]) -> None:
    assert detect(row) == shape
    pair = only(row)
    assert text(pair) == (Q, A, B)
    assert [m["role"] for m in pair.prompt] == ["user"]
    assert only(row, format=shape) == pair


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": Q, "completion": A, "label": True},
        {"prompt": Q, "response": A, "label": "yes"},
        {"messages": [*TALK, message("assistant", A)], "label": True},
        {"messages": [*TALK, message("assistant", A)], "kto_tag": 1},
    ],
)
def test_a_single_answer_with_a_label(row: dict[str, Any]) -> None:
    assert detect(row) == "labelled"
    assert text(only(row)) == (Q, A, "")
    label = "label" if "label" in row else "kto_tag"
    assert text(only({**row, label: "false"})) == (Q, "", A)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "x", "rating": [1, 2]}, "the row has text, rating"),
        ({"promt": Q, "choosen": A, "rejectd": B}, "'chosen' for 'choosen', 'rejected' for 'rejectd'"),
        ({"id": 1, "prompt": "a painting", "generations": ["a.webp"], "ranking": [1]}, "no known shape"),
        ({}, "no fields"),
    ],
)
def test_an_unknown_shape_says_what_the_row_has_and_what_may_be_meant(row: dict[str, Any], says: str) -> None:
    assert says in refused(row).reason


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"chosen": [*TALK, message("assistant", A)], "rejected": [message("user", "No"), message("assistant", B)]},
         "chosen"),
        ({"chosen": [*TALK, message("assistant", "x"), message("user", "y"), message("assistant", A)],
          "rejected": [*TALK, message("assistant", "z"), message("user", "y"), message("assistant", B)]}, "chosen"),
        ({"chosen": [*TALK, message("assistant", A), message("user", "?")],
          "rejected": [*TALK, message("assistant", B)]}, "chosen"),
        ({"prompt": "Another.", "chosen": [*TALK, message("assistant", A)],
          "rejected": [*TALK, message("assistant", B)]}, "prompt"),
        ({"chosen": "Human: a\n\nAssistant: ", "rejected": "Human: a\n\nAssistant: b"}, "chosen"),
        ({"prompt": Q, "completions": [{"text": A, "score": 1}, {"score": 1}]}, "completions[1]"),
        ({"prompt": Q, "responses": [A, B], "scores": [1]}, "scores"),
        ({"prompt": Q, "responses": [A, B], "scores": [1, True]}, "scores[1]"),
        ({"prompt": Q, "responses": [A, B], "scores": [1, float("nan")]}, "scores[1]"),
        ({"prompt": Q, "output_1": A, "output_2": B, "preference": 2.5}, "preference"),
        ({"prompt": Q, "output_1": A, "output_2": B}, "verdict"),
        ({"prompt": Q, "output_1": A, "output_2": B, "label": 3}, "label"),
        ({"prompt": Q, "chosen": A, "rejected": B, "votes": [1, 2]}, "votes[1]"),
        ({"prompt": Q, "chosen": A, "rejected": B, "weight": -1}, "weight"),
        ({"prompt": Q, "chosen": A, "rejected": B, "weight": float("inf")}, "weight"),
        ({"prompt": Q, "chosen": A, "rejected": B, "kind": 7}, "kind"),
        ({"prompt": Q, "chosen": A, "rejected": B, "tools": "{"}, "tools"),
        ({"prompt": Q, "chosen": A, "rejected": B, "system": 3}, "system"),
        ({"prompt": Q, "completion": A, "label": True, "preference_probability": 0.9}, "preference_probability"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_row_is_named(row: dict[str, Any], field: str) -> None:
    error = refused(row)
    assert error.field == field
    assert not isinstance(error, NoPair)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": Q, "responses": [A, B], "scores": [1, 1]},
        {"prompt": Q, "responses": [A, A], "scores": [1, 2]},
        {"prompt": Q, "completions": [{"response": A, "score": 1}, {"response": B, "score": "N/A"}]},
        {"prompt": Q, "response1": A, "response2": B, "annotator1": None, "annotator2": ""},
        {"prompt": Q, "response_a": A, "response_b": B, "winner": ""},
    ],
)
def test_a_sound_row_without_a_pair_is_no_mistake(row: dict[str, Any]) -> None:
    assert isinstance(refused(row), NoPair)


LIST = {"prompt": Q, "responses": ["c", "a", "b", "d"], "scores": [2, 4, 3, 1]}


@pytest.mark.parametrize(
    ("strategy", "margin", "expected"),
    [
        ("best_vs_worst", 0, ["ad"]),
        ("best_vs_worst", 3.5, []),
        ("adjacent", 0, ["ab", "bc", "cd"]),
        ("all", 0, ["ab", "ac", "ad", "bc", "bd", "cd"]),
        ("all", 2, ["ac", "ad", "bd"]),
    ],
)
def test_which_answers_of_a_list_make_pairs(strategy: str, margin: float, expected: list[str]) -> None:
    config = {"strategy": strategy, "min_margin": margin}
    if not expected:
        assert isinstance(refused(LIST, **config), NoPair)
        return
    assert ["".join(text(pair)[1:]) for pair in parse(LIST, **config)] == expected


def test_the_votes_are_turned_with_the_answers() -> None:
    row = {"prompt": Q, "response1": B, "response2": A, "annotator1": 1, "annotator2": 2, "annotator3": 2,
           "annotator4": 0, "annotator5": None}  # fmt: skip
    pair = only(row)
    assert text(pair) == (Q, A, B)
    assert [(v["annotator"], v["preference"]) for v in pair.votes] == [
        ("annotator1", 0.0), ("annotator2", 1.0), ("annotator3", 1.0), ("annotator4", 0.5), ("annotator5", None),
    ]  # fmt: skip


def test_votes_may_name_their_annotators_and_be_words() -> None:
    votes = [{"annotator": "ann", "vote": "rejected"}, {"worker": 7, "label": "chosen"}, {"vote": "tie"}]
    pair = only({"prompt": Q, "chosen": A, "rejected": B, "votes": votes})
    assert [(v["annotator"], v["preference"]) for v in pair.votes] == [("ann", 0.0), ("7", 1.0), ("2", 0.5)]


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (1, (A, B, 1.0)), ("2", (B, A, 1.0)), (0, (A, B, 0.5)), ("tie", (A, B, 0.5)), ("A", (A, B, 1.0)),
        ("output_b", (B, A, 1.0)), ("a-is-slightly-better", (A, B, 0.75)), ("b-is-slightly-better", (B, A, 0.75)),
    ],
)  # fmt: skip
def test_ways_to_say_which_answer_is_better(verdict: Any, expected: tuple[str, str, float]) -> None:
    pair = only({"prompt": Q, "output_a": A, "output_b": B, "winner": verdict})
    assert (*text(pair)[1:], pair.probability) == expected


def test_a_preference_between_one_and_two_is_a_probability() -> None:
    pair = only({"instruction": Q, "output_1": A, "output_2": B, "preference": 1.75})
    assert text(pair) == (Q, B, A)
    assert pair.probability == pytest.approx(0.75)


def test_a_slight_preference_stays_one_in_alpaca_eval_and_one_half_is_a_tie() -> None:
    assert only({"instruction": Q, "output_1": A, "output_2": B, "preference": 1.5}).probability == 0.5


def test_fields_lead_into_objects_and_lists() -> None:
    row = {"q": {"text": Q}, "answers": [{"t": B}, {"t": A}], "good.one": A, "safe": "no"}
    fields = {"prompt": "q.text", "chosen": "answers.1.t", "rejected": "answers.0.t"}
    assert text(only(row, fields=fields)) == (Q, A, B)
    assert text(only(row, fields={**fields, "chosen": "good.one"})) == (Q, A, B)
    single = {"prompt": "q.text", "completion": "answers.0.t"}
    assert text(only(row, fields={**single, "label": "safe"})) == (Q, "", B)
    assert text(only(row, fields={**single, "label": "not safe"})) == (Q, B, "")


def test_a_column_that_is_not_there_is_named_with_its_field() -> None:
    error = refused({"question": Q, "good": A, "bad": B}, fields={"chosen": "goood", "rejected": "bad"})
    assert error.field == "chosen"
    assert "fields.chosen" in error.reason
    assert "did you mean 'good'?" in error.reason


def test_what_rows_of_every_shape_may_say_besides() -> None:
    tools = [{"type": "function", "function": {"name": "add"}}]
    extra = {"weight": 0.5, "kind": "safety", "preference_probability": 0.9, "system": "Be brief.", "tools": tools}
    pair = only({"prompt": Q, "chosen": A, "rejected": B, **extra})
    assert (pair.weight, pair.kind, pair.probability) == (0.5, "safety", 0.9)
    assert pair.prompt == (message("system", "Be brief."), message("user", Q))
    assert json.loads(pair.tools) == tools
    assert only({"prompt": Q, "chosen": A, "rejected": B, **extra, "tools": json.dumps(tools)}) == pair
    empty = dict.fromkeys(extra)
    assert only({"prompt": Q, "chosen": A, "rejected": B, **empty}) == only({"prompt": Q, "chosen": A, "rejected": B})


def test_tool_calls_and_results_are_kept() -> None:
    calls = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
    openai = [message("user", Q), {"role": "assistant", "content": None, "tool_calls": calls}, message("tool", "3")]
    sharegpt = [said("human", Q), said("function_call", '{"name": "add", "arguments": {"a": 1}}'),
                said("observation", "3")]  # fmt: skip
    first = only({"prompt": openai, "chosen": A, "rejected": B})
    second = only({"conversations": sharegpt, "chosen": said("gpt", A), "rejected": said("gpt", B)})
    assert first.prompt == second.prompt
    assert json.loads(first.prompt[1]["extra"]) == {"tool_calls": calls}
    assert [m["role"] for m in first.prompt] == ["user", "assistant", "tool"]
    assert refused({"prompt": [{**openai[0], "tool_calls": calls}], "chosen": A, "rejected": B}).field == (
        "prompt[0].tool_calls"
    )


def test_a_transcript_is_cut_at_its_marks_alone() -> None:
    talk = "\n\nHuman: Hi\n\nAssistant: Hello\n\nThere.\n\nHuman: Say Human: twice"
    pair = only({"chosen": f"{talk}\n\nAssistant: a", "rejected": f"{talk}\n\nAssistant: b"})
    assert pair.prompt == (
        message("user", "Hi"), message("assistant", "Hello\n\nThere."), message("user", "Say Human: twice"),
    )  # fmt: skip


def test_an_instruction_has_its_input_with_it() -> None:
    pair = only({"instruction": "Shorten.", "input": "A long text.", "response1": A, "response2": B, "annotator1": 1})
    assert pair.prompt == (message("user", "Shorten.\n\nA long text."),)


@pytest.mark.parametrize(
    "row",
    [{"prompt": Q}, {"question": Q}, {"instruction": Q, "input": ""}, {"messages": TALK},
     {"conversations": [said("human", Q)]}],
)  # fmt: skip
def test_a_prompt_may_have_other_names(row: dict[str, Any]) -> None:
    assert parse_prompt(row).messages == (message("user", Q),)


OWN = """
from stages.core.formats import RowError
from stages.core.records import PreferencePair

def rows(row, shout=False):
    if row["kind"] == "bad": raise RowError("kind", "no good")
    if row["kind"] == "crash": return 1 / 0
    if row["kind"] == "skip": return None
    if row["kind"] == "number": return 7
    answer = row["a"].upper() if shout else row["a"]
    mapping = {"prompt": row["q"], "chosen": answer, "rejected": row["b"]}
    return [mapping, mapping] if row["kind"] == "two" else mapping
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_format.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return "own_format:rows"


def test_a_users_own_format(own: str) -> None:
    row = {"q": Q, "a": A, "b": B, "kind": "one"}
    config = {"format": {"use": own}}
    assert text(only(row, **config)) == (Q, A, B)
    assert text(only(row, format={"use": own, "options": {"shout": True}})) == (Q, "BLUE.", B)
    assert len(parse({**row, "kind": "two"}, **config)) == 2
    assert isinstance(refused({**row, "kind": "skip"}, **config), NoPair)


@pytest.mark.parametrize(
    ("kind", "says"), [("bad", "no good"), ("crash", "ZeroDivisionError"), ("number", "returned int")]
)
def test_a_users_own_format_that_fails_is_named(own: str, kind: str, says: str) -> None:
    error = refused({"q": Q, "a": A, "b": B, "kind": kind}, format={"use": own})
    assert says in str(error)
    assert not isinstance(error, NoPair)
