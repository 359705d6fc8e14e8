"""Final answers of worked solutions against references: numbers by value, expressions by math-verify, else texts.

Where a solution says what its final answer is follows the data sets: a line ``#### 42`` (GSM8K, arXiv:2110.14168),
``\\boxed{42}`` (MATH, arXiv:2103.03874), "the answer is 42" in words, or else the last number.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from stages.judge.judges.rules.rows import Unjudged

FIELDS = ("answer", "reference", "solution")
"""Where a reference is looked for, in this order."""

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_SIGN = r"[-+\u2212]?"
_NUMBER = re.compile(rf"(?<![\w.]){_SIGN}\s?[$€£¥]?{_SIGN}(?:{_DIGITS})(?:\s?/\s?\d+(?:\.\d+)?)?")
_FRACTION = re.compile(rf"({_SIGN})\\[dt]?frac\{{({_SIGN}\d+)\}}\{{(\d+)\}}")
_MARKED = re.compile(r"^[ \t]*####[ \t]*(\S.*)$", re.MULTILINE)
_STATED = re.compile(
    r"\banswer\b(?:\s+(?:is|to [^.\n]{1,60}? is)\b\s*:?|\s*[:=])\s*\**\s*(\S[^\n]*)|^[ \t]*\**A:[ \t]*\**[ \t]*(\S.*)$",
    re.IGNORECASE | re.MULTILINE,
)
_MATHS = re.compile(r"[\\^_=(){}\[\]]|\b[a-z]\b|\d\s*[a-z]\b|(?<=[\w)])\s*[*+]\s*(?=[\w(])")
_WRAPPING = " \t\n*_`$.,;:!\"'"


@dataclass(frozen=True)
class Reference:
    """The final answer of a reference, and its value if it is a number."""

    text: str
    number: Fraction | None

    @property
    def maths(self) -> bool:
        """Whether it is an expression, and neither a number nor words."""
        return self.number is None and len(self.text) > 1 and _MATHS.search(self.text) is not None


def wanted(value: Any) -> Reference:
    """The final answer of a reference, which may be the answer alone or a solution that ends in it.

    Raises:
        Unjudged: it is empty, or neither text nor a number.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise Unjudged(f"answer: the reference is {value!r:.40}, no answer")
    text = str(value).strip()
    final = _said(text)
    if final is None:
        prose = "\n" in text or len(re.findall(r"(?<![\\\w])[^\W\d_]{2,}", text)) > 3
        final = _last(text) if prose else None
    final = _bare(final if final is not None else text)
    return Reference(final, number(final))


def found(text: str, reference: Reference) -> str | None:
    """The final answer of a solution, of the reference's kind; None where there is none."""
    said = _said(text)
    if said is not None and reference.number is not None and number(said) is None:
        said = _first(said) or said  # "The answer is 42 because ..."
    if said is None and reference.number is not None:
        said = _last(text)
    if said is None and reference.number is None:
        said = text.strip().rpartition("\n")[2]
    return _bare(said) or None if said is not None else None


def agrees(answer: str | None, reference: Reference, tolerance: float = 0.0) -> bool:
    """Whether an answer is the reference's. Numbers are compared exactly unless there is a ``tolerance``, a share of
    the reference; a currency, a percent sign and a unit do not count.

    Raises:
        Unjudged: expressions that could not be compared in time.
    """
    if answer is None:
        return False
    value = number(answer)
    if value is not None and reference.number is not None:
        return abs(value - reference.number) <= Fraction(tolerance) * abs(reference.number)
    if _plain(answer) == _plain(reference.text):
        return True
    return (reference.maths or "\\" in answer) and _equal(answer, reference.text)


def number(text: str) -> Fraction | None:
    """The value of a text that is a number, perhaps with a currency, a unit or a percent sign; None for any other.

    A number is decimal, a fraction of two, or ``\\frac{a}{b}``, with commas between thousands.
    """
    text = re.sub(r"\\(?:text|mathrm|mbox)\{([^{}]*)\}|\\[,;! ]|\\(?=[$%])", r"\1", _bare(text)).replace("{,}", ",")
    text = _FRACTION.sub(r"\1\2/\3", text).strip().lstrip("=≈ ")
    match = _NUMBER.match(text)
    if match is None or not re.fullmatch(
        r"(?:\s?(?:%|°\w?|[^\W\d_]{2,}[.²³]?|[a-zA-Z]{1,3}[²³]?)){0,4}", text[match.end() :]
    ):
        return None
    return _value(match[0])


def _value(text: str) -> Fraction | None:
    over = re.sub(r"[$€£¥,\s+]", "", text).replace("\u2212", "-").split("/")
    try:
        parts = [Fraction(part) for part in over]
        return parts[0] / parts[1] if len(parts) > 1 else parts[0]
    except (ValueError, ZeroDivisionError):  # ValueError: more digits than Python reads
        return None


def _said(text: str) -> str | None:
    """What a text marks as its final answer; the last of the strongest mark."""
    if marked := _MARKED.findall(text):
        return str(marked[-1])
    if (boxed := _boxed(text)) is not None:
        return boxed
    if stated := _STATED.findall(text):
        return str(stated[-1][0] or stated[-1][1])
    return None


def _boxed(text: str) -> str | None:
    """What stands in the last ``\\boxed{}``, whose braces may hold others."""
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        return None
    first = text.index("{", start) + 1
    depth = 1
    for place in range(first, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if not depth:
            return text[first:place]
    return None


def _first(text: str) -> str | None:
    match = _NUMBER.search(text)
    return match[0] if match else None


def _last(text: str) -> str | None:
    numbers = _NUMBER.findall(text)
    return str(numbers[-1]) if numbers else None


def _bare(text: str) -> str:
    """Without the emphasis, dollar signs and full stop around it; a currency and a leading point stay."""
    text = text.strip()
    if re.fullmatch(r"\$[^$]+\$[.,]?", text) or re.fullmatch(r"\\\(.*\\\)[.,]?", text, re.DOTALL):
        text = re.sub(r"^(?:\$|\\\()|(?:\$|\\\))[.,]?$", "", text)
    inner = _boxed(text)
    text = inner if inner is not None and text.startswith("\\boxed") else text
    return text.strip(" \t\n*_`").rstrip(_WRAPPING).lstrip("\"'")


def _plain(text: str) -> str:
    text = re.sub(r"\\text\{([^{}]*)\}", r"\1", text)
    return re.sub(r"\s+|\\[,;! ]", " ", text).strip(_WRAPPING).casefold()


def _equal(answer: str, reference: str) -> bool:
    """Whether two LaTeX expressions are the same mathematics.

    The time for it is limited, as an expression such as 9^(9^9) can take any: by a signal, so in the main thread.

    Raises:
        Unjudged: the time was not enough.
    """
    from math_verify import parse, verify
    from math_verify.errors import TimeoutException

    seconds = 5 if threading.current_thread() is threading.main_thread() else None
    try:
        one, two = (parse(f"${text}$", parsing_timeout=seconds) for text in (reference, answer))
        return bool(one and two) and verify(one, two, timeout_seconds=seconds, raise_on_error=True)
    except TimeoutException:
        raise Unjudged("answer: comparing the expressions took too long") from None
    except Exception:  # what a library makes of any text: it could not read one of them
        return False
