"""The rules that look into the row: JSON, languages, final answers and instructions."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from stages.base import StageError
from stages.core.records import Judgement, Rollout
from stages.io.output import Output
from stages.io.store import Store
from stages.judge.asking import rows_of
from stages.judge.judges.config import JudgeConfig
from stages.judge.judges.make import make
from stages.judge.judges.means import Means
from stages.judge.judges.rules import answer as answers
from stages.judge.judges.rules.instructions import CHECKS
from stages.judge.protocol import NoVerdict

GERMAN = "Das Wetter ist heute schön, und wir gehen am Nachmittag in den Garten."
ENGLISH = "The weather is nice today, and we are going to the garden in the afternoon."


def judged(text: str, metadata: dict[str, Any] | None = None, **rules: Any) -> Judgement | NoVerdict:
    config = TypeAdapter(JudgeConfig).validate_python({"use": "rules", **rules})
    judge = make(config, Means(Output(Store("/nowhere"), "step", "inputs")))
    asked = [{"role": "user", "content": "q"}]
    (said,) = judge(rows_of([Rollout("p", 0, asked, text, 1, "stop", metadata=json.dumps(metadata or {}))], False))
    assert isinstance(said, Judgement | NoVerdict)
    return said


def score(text: str, metadata: dict[str, Any] | None = None, **rules: Any) -> float:
    said = judged(text, metadata, **rules)
    assert isinstance(said, Judgement), said
    return said.score


def why_not(text: str, metadata: dict[str, Any] | None = None, **rules: Any) -> str:
    said = judged(text, metadata, **rules)
    assert isinstance(said, NoVerdict), said
    assert said.places == (0,)
    return said.reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1}', 1),
        (" [1, 2] \n", 1),
        ('```json\n{"a": 1}\n```', 1),
        ("```\n3\n```\n", 1),
        ("{'a': 1}", 0),
        ('Here you are: {"a": 1}', 0),
        ("NaN", 0),
        ("", 0),
        ("[" * 100_000, 0),
    ],
)
def test_json_alone_or_in_a_fence(text: str, expected: float) -> None:
    assert score(text, json=True) == expected


SCHEMA = {"type": "object", "required": ["age"], "properties": {"age": {"type": "integer", "minimum": 0}}}


def test_json_follows_a_schema_of_the_spec_or_of_the_row() -> None:
    for rules, metadata in (
        ({"json": SCHEMA}, {}),
        ({"json": {"field": "shape"}}, {"shape": SCHEMA}),
        ({"json": {"field": "shape"}}, {"shape": json.dumps(SCHEMA)}),
    ):
        assert score('{"age": 3}', metadata, **rules) == 1
        said = judged('{"age": -3}', metadata, **rules)
        assert isinstance(said, Judgement)
        assert said.score == 0
        assert said.reason.startswith("json ($.age: -3 is less than")
        assert score("{}", metadata, **rules) == 0


def test_a_schema_that_is_none_is_refused_or_named() -> None:
    with pytest.raises(ValidationError, match="not a JSON schema"):
        judged("{}", json={"type": "objekt"})
    assert "no field 'shape'; it has other" in why_not("{}", {"other": 1}, json={"field": "shape"})
    assert "not a JSON schema" in why_not("{}", {"shape": {"type": "objekt"}}, json={"field": "shape"})
    assert "no JSON schema" in why_not("{}", {"shape": 3}, json={"field": "shape"})


def test_nothing_is_fetched_for_a_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []

    def urlopen(address: Any, *_: Any, **__: Any) -> Any:
        fetched.append(address)
        return io.BytesIO(b"{}")

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    far = {"$ref": "http://127.0.0.1:9/schema.json"}
    assert "can be checked" in why_not("{}", {"shape": far}, json={"field": "shape"})
    assert not fetched


def test_the_language_of_the_spec_or_of_the_row() -> None:
    assert score(GERMAN, language="de") == 1
    assert score(ENGLISH, language="de") == 0
    assert score("", language="de") == 0
    assert score(GERMAN, {"lang": "de"}, language={"field": "lang"}) == 1
    assert score(GERMAN, {"lang": "en"}, language={"field": "lang"}) == 0
    assert "no field 'lang'" in why_not(GERMAN, language={"field": "lang"})
    assert "no language 'German'" in why_not(GERMAN, {"lang": "German"}, language={"field": "lang"})
    with pytest.raises(StageError, match="no language 'deutsch'"):
        judged(GERMAN, language="deutsch")


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        ("6 * 7 = 42\n#### 42", "He has 6 * 7 = <<6*7=42>>42 eggs.\n#### 42", 1),
        ("#### 41", "#### 42", 0),
        ("#### 10\nI hope that helps 2 of you.", "10", 1),
        ("First 3, then 4.\nA: 18", "18", 1),
        ("So it costs $1,234.", "1234", 1),
        ("So it costs $1,234.50", "1234.5", 1),
        ("It is 1,234 dollars", 1234, 1),
        ("It falls to -5 degrees", "-5", 1),
        ("It falls to \u22125 degrees", "-5", 1),
        ("It falls to -5 degrees", "5", 0),
        ("There are 3-5 of them, so 8", "8", 1),
        ("3.00", "3", 1),
        ("3.01", "3", 0),
        (".5", "1/2", 1),
        ("The answer is 42. That took me 3 steps.", "42", 1),
        ("The answer to the question is 42, not 3", "42", 1),
        ("**Answer:** 42", "42", 1),
        ("**Answer**: 42", "42", 1),
        ("Thus \\boxed{42 \\text{ apples}} and 7 more words", "42", 1),
        ("Thus $\\boxed{\\frac{1}{2}}$.", "0.5", 1),
        ("\\boxed{\\frac{1}{2}}", "$\\frac12$", 1),
        ("so \\boxed{1+x}", "$x+1$", 1),
        ("so \\boxed{x+2}", "$x+1$", 0),
        ("so \\boxed{\\sqrt{8}}", "We see that it is $\\boxed{2\\sqrt{2}}$.", 1),
        ("so \\boxed{(1, 2)}", "(1,2)", 1),
        ("so \\boxed{(2, 1)}", "(1,2)", 0),
        ("50%", "50", 1),
        ("I do not know.", "42", 0),
        ("", "42", 0),
        ("The answer is Paris.", "paris", 1),
        ("Let me think.\nParis", "Paris", 1),
        ("London", "Paris", 0),
        ("The answer is (B).", "(B)", 1),
        ("The answer is C.", "B", 0),
        ("It makes 7 apples and 2 pears, so 9.", "Seven and two make 9 of them in all.", 1),
        ("#### 1,000,000", "1000000", 1),
        ("#### 1,2", "12", 0),
        ("Version 2.0.1 has 5", "5", 1),
    ],
)
def test_final_answers(text: str, reference: Any, expected: float) -> None:
    assert score(text, {"answer": reference}, answer=True) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$5", 5),
        ("5 km", 5),
        ("5 km/h", None),
        ("x", None),
        ("5x", 5),
        ("1/0", None),
        ("about 5", None),
        ("£2.50", 2.5),
    ],
)
def test_what_is_a_number(text: str, value: float | None) -> None:
    assert answers.number(text) == value


def test_the_reference_is_found_under_its_usual_names_or_the_given_one() -> None:
    assert score("7", {"solution": "#### 7", "answer": None}, answer=True) == 1
    assert score("7", {"reference": "7", "solution": "8"}, answer=True) == 1
    assert score("7", {"answer": "8", "target": "7"}, answer={"field": "target"}) == 1
    assert "no field 'answer', 'reference', 'solution'; it has target" in why_not("7", {"target": 7}, answer=True)
    assert "no field 'goal'" in why_not("7", {"answer": 7}, answer={"field": "goal"})
    assert "the reference is ['7'], no answer" in why_not("7", {"answer": ["7"]}, answer=True)


def test_a_tolerance_is_a_share_of_the_reference() -> None:
    assert score("102", {"answer": 100}, answer={"tolerance": 0.02}) == 1
    assert score("103", {"answer": 100}, answer={"tolerance": 0.02}) == 0


def test_a_broken_answer_says_what_was_found_and_wanted() -> None:
    said = judged("so 41", {"answer": "#### 42"}, answer=True)
    assert isinstance(said, Judgement)
    assert said.reason == "answer ('41', not '42')"


def test_an_expression_that_takes_for_ever_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    import math_verify
    from math_verify.errors import TimeoutException

    def slow(*_: Any, **__: Any) -> bool:
        raise TimeoutException

    monkeypatch.setattr(math_verify, "verify", slow)
    assert "too long" in why_not("\\boxed{9^{9^{9}}}", {"answer": "x^2"}, answer=True)


AT_LEAST, LESS = "at least", "less than"
INSTRUCTIONS: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["sun", "Moon"]}, "The Sun and the moon.", "The sun."),
    ("keywords:frequency", {"keyword": "go", "frequency": 2, "relation": AT_LEAST}, "Go and go.", "Go on."),
    ("keywords:frequency", {"keyword": "go", "frequency": 2, "relation": LESS}, "Go on.", "Go and go."),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "A category.", "A Cat!"),
    ("keywords:letter_frequency", {"letter": "e", "let_frequency": 3, "let_relation": AT_LEAST}, "Eee", "Ee"),
    ("keywords:letter_frequency", {"letter": "!", "let_frequency": 2, "let_relation": LESS}, "a!", "a!!"),
    ("language:response_language", {"language": "de"}, GERMAN, ENGLISH),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": AT_LEAST},
        "Hi. Ok?",
        "Dr. A is in, e.g. now.",
    ),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": LESS}, "It is 3.5 m.", "One! Two!"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a\n\nb"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "***\na\n***\nb", "a\n***\n***\nb"),
    ("length_constraints:number_words", {"num_words": 3, "relation": AT_LEAST}, "a b c", "a, b"),
    ("length_constraints:number_words", {"num_words": 3, "relation": LESS}, "a b", "a b c"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        'One.\n\n"Then, two.',
        "Then one.\n\nTwo.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name], [street]", "[name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye\nP.S. Call", "Bye, as the ps says"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye\nP.P.S Call", "Bye\nP.S. Call"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n**b**\n---"),
    ("detectable_format:constrained_response", {}, "My answer is no.", "No."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b**", "*a* and ** **"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1\na\nSection 2\nb",
        "Section 1\na\nSection b",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "a: 1"),
    ("detectable_format:title", {}, "<<Joy>>\nText", "<< >>\n<Joy>"),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
    ("combination:two_responses", {}, "******\none\n******\ntwo", "one\n******\ntwo\n******\nthree"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi"}, "say hi\nHi!", "Hi! Say hi"),
    ("startend:end_checker", {"end_phrase": "That is all."}, "Hi. that is all.\n", "That is all. Bye"),
    ("startend:quotation", {}, '"Hi"', '"Hi" he said'),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": AT_LEAST},
        "NASA and ESA fly",
        "NASA and Esa fly",
    ),
    ("change_case:english_capital", {}, ENGLISH.upper(), ENGLISH),
    ("change_case:english_lowercase", {}, ENGLISH.lower(), ENGLISH),
    ("punctuation:no_comma", {}, "a and b", "a, b"),
]


@pytest.mark.parametrize(("kind", "arguments", "good", "bad"), INSTRUCTIONS, ids=lambda value: str(value)[:40])
def test_instructions_by_hand(kind: str, arguments: dict[str, Any], good: str, bad: str) -> None:
    row = {"instruction_id_list": [kind], "kwargs": [{**arguments, "not_given": None}]}
    assert score(good, row, instructions=True) == 1
    assert score(bad, row, instructions=True) == 0


def test_every_instruction_of_the_paper_is_tried_here() -> None:
    assert {kind for kind, *_ in INSTRUCTIONS} == set(CHECKS)
    assert len(CHECKS) == 25


def test_each_instruction_is_a_rule_among_the_others() -> None:
    row = {"instruction_id_list": ["punctuation:no_comma", "detectable_format:title"], "kwargs": [{}, None]}
    said = judged("a, b", row, instructions=True, max_words=5, min_words=1)
    assert isinstance(said, Judgement)
    assert said.score == 0.5
    assert said.reason == "punctuation:no_comma, detectable_format:title"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "no field 'instruction_id_list'"),
        ({"instruction_id_list": ["punctuation:no_comma"]}, "no field 'kwargs'"),
        ({"instruction_id_list": [], "kwargs": []}, "no list of instructions"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, "object for each instruction"),
        ({"instruction_id_list": ["count:numbers"], "kwargs": [{}]}, "'count:numbers' is no instruction that is known"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [3]}, "hold 3 for it"),
        ({"instruction_id_list": ["keywords:existence"], "kwargs": [{}]}, "keywords:existence has no 'keywords'"),
        ({"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": "sun"}]}, "not a list of texts"),
        (
            {
                "instruction_id_list": ["length_constraints:number_words"],
                "kwargs": [{"num_words": 3, "relation": "about"}],
            },
            "'at least' or 'less than'",
        ),
    ],
)  # fmt: skip
def test_instructions_that_cannot_be_checked_are_named(row: dict[str, Any], reason: str) -> None:
    assert reason in why_not("a", row, instructions=True)


def test_rules_that_are_switched_off_change_no_identity() -> None:
    def identity(**rules: Any) -> dict[str, Any]:
        return TypeAdapter(JudgeConfig).validate_python({"use": "rules", **rules}).identity()

    assert identity(answer=False, json=False, instructions=False) == identity() == {"use": "rules"}
    assert identity(json=True, answer=True) == {"use": "rules", "json": True, "answer": {}}


def test_numbers_without_an_end_are_not_judged() -> None:
    row = {"instruction_id_list": ["length_constraints:number_words"]}
    for number, kind in ((float("inf"), "OverflowError"), (float("nan"), "ValueError")):
        arguments = {"kwargs": [{"relation": "at least", "num_words": number}]}
        assert f"cannot be checked: {kind}" in why_not("a b", {**row, **arguments}, instructions=True)
    assert "cannot be checked: OverflowError" in why_not("1e400", json={"multipleOf": 0.5})
