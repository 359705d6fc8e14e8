"""Counts of what a text consists of: words, sentences, parts."""

from __future__ import annotations

import re

_ABBREVIATION = re.compile(
    r"\b(?:(?:mr|mrs|ms|dr|prof|st|vs|etc|no|fig|inc|ltd|jr|sr|approx)\.|(?:[a-z]\.){2,}|[A-Z]\.(?=\s[A-Z]))",
    re.IGNORECASE,
)
_END = re.compile(r"[.!?…。！？]+[\"'”’)\]*_]*(?=\s|$)|[。！？]|\n\s*\n")


def words(text: str) -> int:
    """Runs of letters, digits and underscores, as IFEval counts them: ``don't`` are two."""
    return len(re.findall(r"\w+", text))


def as_word(text: str, word: str) -> bool:
    """Whether a text has a word, or several, that is not part of a longer one; in any case."""
    return re.search(rf"(?<!\w){re.escape(word.strip())}(?!\w)", text, re.IGNORECASE) is not None


def sentences(text: str) -> int:
    """What full stops, question and exclamation marks, and empty lines divide, if there are words in it. The full stops
    of abbreviations and numbers divide nothing, unless they end the text."""
    masked = _ABBREVIATION.sub(lambda match: match[0].replace(".", "·"), text)
    return sum(re.search(r"\w", part) is not None for part in _END.split(masked))


def divided(text: str, divider: str) -> int:
    """The parts between dividers, a regular expression. An empty part at an end does not count; one in between makes
    it no division, of 0 parts."""
    parts = [part.strip() for part in re.split(divider, text)]
    parts = parts[1:] if parts and not parts[0] else parts
    parts = parts[:-1] if parts and not parts[-1] else parts
    return len(parts) if all(parts) else 0


def capital_words(text: str) -> int:
    """Words all of whose letters are capital."""
    return sum(word.isupper() for word in re.findall(r"[\w'’-]+", text))
