"""Instructions that can be verified: the 25 kinds of IFEval (Zhou et al. 2023, arXiv:2311.07911, table 1 and appendix).

A row has ``instruction_id_list``, the kinds, and ``kwargs``, an object with the arguments of each; those that are null
are not given. Everything is checked of the answer as it is ("strict"). Sentences are told by their punctuation, where
IFEval asks a trained model, so counts near a bound may differ.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from stages.judge.judges.rules import counting, shape
from stages.judge.judges.rules.rows import Unjudged, given
from stages.judge.protocol import Row

_CHOICES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


class Arguments:
    """The arguments of one instruction, checked as they are asked for."""

    def __init__(self, kind: str, values: Mapping[str, Any]) -> None:
        self._kind, self._values = kind, values

    def number(self, name: str) -> int:
        value = self._value(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
            raise self._wrong(name, "a whole number")
        return int(value)

    def text(self, name: str) -> str:
        value = self._value(name)
        if not isinstance(value, str) or not value:
            raise self._wrong(name, "a text")
        return value

    def texts(self, name: str) -> Sequence[str]:
        value = self._value(name)
        if not isinstance(value, list) or not value or not all(isinstance(each, str) and each for each in value):
            raise self._wrong(name, "a list of texts")
        return value

    def holds(self, count: int, bound: str, relation: str) -> bool:
        """Whether a count is what the arguments ask for: ``at least`` a bound, or ``less than`` it."""
        asked = self.text(relation)
        if asked not in ("at least", "less than"):
            raise self._wrong(relation, "'at least' or 'less than'")
        return count >= self.number(bound) if asked == "at least" else count < self.number(bound)

    def _value(self, name: str) -> Any:
        value = self._values.get(name)
        if value is None:
            raise Unjudged(f"instructions: {self._kind} has no {name!r} in the row's 'kwargs'")
        return value

    def _wrong(self, name: str, expected: str) -> Unjudged:
        found = self._values[name]
        return Unjudged(f"instructions: {self._kind}: {name} in the row's 'kwargs' is {found!r:.40}, not {expected}")


def followed(row: Row, text: str) -> Iterator[tuple[str, bool]]:
    """Each of the row's instructions, and whether a text follows it.

    Raises:
        Unjudged: the row has none, or one that is not known, or one whose arguments are not right.
    """
    kinds = given(row, "instruction_id_list", "instructions")
    arguments = given(row, "kwargs", "instructions")
    if not isinstance(kinds, list) or not kinds:
        raise Unjudged("instructions: the row's 'instruction_id_list' is no list of instructions")
    if not isinstance(arguments, list) or len(arguments) != len(kinds):
        raise Unjudged("instructions: the row's 'kwargs' is no list with an object for each instruction")
    for kind, values in zip(kinds, arguments, strict=True):
        if (check := CHECKS.get(kind) if isinstance(kind, str) else None) is None:
            raise Unjudged(f"instructions: {kind!r:.80} is no instruction that is known")
        if not isinstance(values, Mapping | None):
            raise Unjudged(f"instructions: {kind}: the row's 'kwargs' hold {values!r:.40} for it, no object")
        yield kind, check(text, Arguments(kind, values or {}))


def _existence(text: str, asked: Arguments) -> bool:
    return all(_has(text, word) for word in asked.texts("keywords"))


def _has(text: str, word: str) -> bool:
    return word.casefold() in text.casefold()


def _frequency(text: str, asked: Arguments) -> bool:
    count = text.casefold().count(asked.text("keyword").strip().casefold())
    return asked.holds(count, "frequency", "relation")


def _forbidden(text: str, asked: Arguments) -> bool:
    return not any(counting.as_word(text, word) for word in asked.texts("forbidden_words"))


def _letters(text: str, asked: Arguments) -> bool:
    count = text.casefold().count(asked.text("letter").casefold())
    return asked.holds(count, "let_frequency", "let_relation")


def _language(text: str, asked: Arguments) -> bool:
    return shape.is_language(text, asked.text("language"), "instructions")


def _sentences(text: str, asked: Arguments) -> bool:
    return asked.holds(counting.sentences(text), "num_sentences", "relation")


def _words(text: str, asked: Arguments) -> bool:
    return asked.holds(counting.words(text), "num_words", "relation")


def _paragraphs(text: str, asked: Arguments) -> bool:
    return counting.divided(text, r"\s?\*\*\*\s?") == asked.number("num_paragraphs")


def _first_word(text: str, asked: Arguments) -> bool:
    """So many paragraphs, divided by empty lines, and one of them begins with a word."""
    number, place = asked.number("num_paragraphs"), asked.number("nth_paragraph")
    paragraphs = [part.strip() for part in re.split(r"\n\n", text) if part.strip()]
    if len(paragraphs) != number or not 1 <= place <= number:
        return False
    word = re.match(r"[\"'“‘(*_]*([^\s.,?!:;\"'”’)*_]+)", paragraphs[place - 1])
    return word is not None and word[1].casefold() == asked.text("first_word").casefold()


def _placeholders(text: str, asked: Arguments) -> bool:
    return len(re.findall(r"\[[^\[\]]*\]", text)) >= asked.number("num_placeholders")


def _postscript(text: str, asked: Arguments) -> bool:
    """A line that begins with the marker; full stops of one like ``P.P.S`` may stand apart or be missing."""
    marker = asked.text("postscript_marker").strip()
    dotted = r"\.?\s?".join(map(re.escape, re.findall(r"[^\s.]", marker))) + r"\.?"
    pattern = dotted if re.fullmatch(r"(?:P\.?\s?)+S\.?", marker, re.IGNORECASE) else re.escape(marker)
    return re.search(rf"^\s*{pattern}", text, re.IGNORECASE | re.MULTILINE) is not None


def _bullets(text: str, asked: Arguments) -> bool:
    """Lines that begin with ``*`` (but not ``**``, which is bold) or ``-``."""
    return len(re.findall(r"^\s*(?:\*[^*\n]|-[^-\n])", text, re.MULTILINE)) == asked.number("num_bullets")


def _constrained(text: str, _: Arguments) -> bool:
    return any(choice in text for choice in _CHOICES)


def _highlights(text: str, asked: Arguments) -> bool:
    found = re.findall(r"\*\*[^\n*]+\*\*|\*[^\n*]+\*", text)
    return sum(bool(each.strip("* ")) for each in found) >= asked.number("num_highlights")


def _sections(text: str, asked: Arguments) -> bool:
    splitter = re.escape(asked.text("section_spliter").strip())
    return len(re.findall(rf"\s?{splitter}\s?\d+\s?", text)) >= asked.number("num_sections")


def _json(text: str, _: Arguments) -> bool:
    return not shape.json_fault(text)


def _title(text: str, _: Arguments) -> bool:
    return any(each.strip(" <>") for each in re.findall(r"<<[^\n]+?>>", text))


def _two_responses(text: str, _: Arguments) -> bool:
    """Two answers, that differ, with six asterisks between them."""
    parts = [part.strip() for part in text.split("******")]
    parts = parts[bool(parts) and not parts[0] :]
    parts = parts[:-1] if parts and not parts[-1] else parts
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


def _repeats(text: str, asked: Arguments) -> bool:
    return text.strip().casefold().startswith(asked.text("prompt_to_repeat").strip().casefold())


def _ends(text: str, asked: Arguments) -> bool:
    return text.strip().strip('"').casefold().endswith(asked.text("end_phrase").strip().casefold())


def _quoted(text: str, _: Arguments) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def _capital_words(text: str, asked: Arguments) -> bool:
    return asked.holds(counting.capital_words(text), "capital_frequency", "capital_relation")


def _capital(text: str, _: Arguments) -> bool:
    return text.isupper() and shape.is_language(text.lower(), "en")


def _lowercase(text: str, _: Arguments) -> bool:
    return text.islower() and shape.is_language(text, "en")


def _no_comma(text: str, _: Arguments) -> bool:
    return "," not in text


CHECKS: Mapping[str, Callable[[str, Arguments], bool]] = {
    "keywords:existence": _existence,
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": _forbidden,
    "keywords:letter_frequency": _letters,
    "language:response_language": _language,
    "length_constraints:number_sentences": _sentences,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_words": _words,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": _constrained,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeats,
    "startend:end_checker": _ends,
    "startend:quotation": _quoted,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": _capital,
    "change_case:english_lowercase": _lowercase,
    "punctuation:no_comma": _no_comma,
}
"""What each kind of instruction asks of a text."""
