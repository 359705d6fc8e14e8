"""Text from users never becomes a control token, whatever tokenizer and template do with it. In what the model itself
said, control tokens that the tokenizer does not call special (``<think>``, ``<tool_call>``) are the model's own.

Two things ensure that. Before a template is rendered, the first character of each control string in the data
is replaced by a stand-in, so that those in the rendered text are the template's own. And the text, its characters
restored, is tokenised by a copy of the tokenizer in which every control token has another name, a private character
that is put where the template wrote the token: the copy knows no ``<|im_end|>``, so no text can spell it, and no
Unicode normalisation can produce it from look-alikes. The template itself is trusted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stages.core.errors import RowError

_FIRST, _LAST = 0x10A000, 0x10FFFD
_RESERVED = re.compile(f"[{chr(_FIRST)}-{chr(_LAST)}]")
"""The end of the last private-use plane, which has no known users."""


class ControlTokens:
    """A fast tokenizer's control tokens, and encoding that tells the template's own from those in data."""

    def __init__(self, tokenizer: Any) -> None:
        """Takes a transformers tokenizer; ValueError if it has no Rust tokenizer under it, or too many tokens."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(f"{type(tokenizer).__name__} is not a fast tokenizer: save the model with tokenizer.json")
        settings = json.loads(backend.to_str())
        tokens = [token for token in settings["added_tokens"] if is_control(token["content"], token["special"])]
        characters = sorted({character for token in tokens for character in token["content"]})
        if len(tokens) + len(characters) > _LAST - _FIRST:
            raise ValueError(f"the tokenizer has {len(tokens)} control tokens, more than can be told apart")
        self._stand_ins = {character: chr(_LAST - i) for i, character in enumerate(characters)}
        self._characters = {stand_in: character for character, stand_in in self._stand_ins.items()}
        self._names = {token["content"]: chr(_FIRST + i) for i, token in enumerate(tokens)}
        self._all = _Strings(self._names, self._stand_ins)
        self._special = _Strings([token["content"] for token in tokens if token["special"]], self._stand_ins)
        self._glued = {token["content"] for token in tokens if token["lstrip"] or token["content"][0].isspace()}
        _rename(settings, self._names)
        self._copy = backend.from_str(json.dumps(settings))

        self._pattern = re.compile(f"({_any_of(self._names) or '(?!)'})")
        self._unlike = self._differing(tokenizer)

    def protect(self, text: str, field: str = "content", own: bool = False) -> str:
        """Text from data made safe for a template: control strings in it are broken, as is what could become one
        together with the text before or after it.

        Args:
            own: the text is the model's own words, in which only special tokens are broken.

        Raises:
            RowError: it has a character that cannot be written, or one of those reserved here.
        """
        if not text.isascii():
            if found := _RESERVED.search(text):
                raise RowError(field, f"contains the private-use character U+{ord(found[0]):X}, which is reserved")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise RowError(field, f"half a surrogate pair at character {error.start}, which is not text") from None
        return (self._special if own else self._all).broken(text)

    def protect_json(self, value: Any, field: str, own: bool = False) -> Any:
        """JSON data in which every string, keys included, went through :meth:`protect`. A text alone can be the model's
        own words."""
        if isinstance(value, str):
            return self.protect(value, field, own)
        if isinstance(value, list):
            return [self.protect_json(item, field) for item in value]
        if isinstance(value, dict):
            return {self.protect(name, field): self.protect_json(item, field) for name, item in value.items()}
        return value

    def pieces(self, rendered: str) -> list[str]:
        """Rendered text as pieces for :meth:`encode`, cut where the tokenizer itself cuts: before control tokens.

        There is no cut at tokens that take the white space before them. The control token stays before its piece, since
        tokenizers may treat the very first text differently.

        Raises:
            RowError: the template writes a token that the tokenizer recognises only in some places.
        """
        if self._unlike and not self._unlike.isdisjoint(found := self._pattern.findall(rendered)):
            token = next(token for token in found if token in self._unlike)
            writes = f"the chat template, or the assistant, writes {token!r}"
            reason = "which this tokenizer reads as a control token in some places only"
            raise RowError("", f"{writes}, {reason}: give it normalized=false in tokenizer.json")
        return self._cut(rendered)

    def _cut(self, rendered: str) -> list[str]:
        first, *rest = self._pattern.split(rendered)
        pieces = [first] if first else []
        for token, text in zip(rest[::2], rest[1::2], strict=True):
            piece = self._names[token] + text
            if pieces and token in self._glued:
                pieces[-1] += piece
            else:
                pieces.append(piece)
        return pieces if rendered.isascii() else [self.restored(piece) for piece in pieces]

    def restored(self, text: str) -> str:
        """A text with the characters that stand-ins stand for."""
        return _RESERVED.sub(lambda match: self._characters.get(match[0], match[0]), text)

    def encode(self, pieces: Sequence[str]) -> list[list[int]]:
        """Token ids of each piece, by the Rust tokenizer's threads."""
        return [encoding.ids for encoding in self._copy.encode_batch_fast(pieces, add_special_tokens=False)]

    def _differing(self, tokenizer: Any) -> set[str]:
        """Control tokens that the copy reads differently from the tokenizer itself, between words or within them."""
        tokens = list(self._names)
        texts = [text for token in tokens for text in (f"a {token} b\n{token}", f"{token}a{token}b")]
        expected = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        ids = [[i for part in self.encode(self._cut(text)) for i in part] for text in texts]
        same = [a == b for a, b in zip(expected, ids, strict=True)]
        return {token for token, *both in zip(tokens, same[::2], same[1::2], strict=True) if not all(both)}


class _Strings:
    """Some control strings, and how they are broken: by stand-ins for their characters."""

    def __init__(self, strings: Iterable[str], stand_ins: Mapping[str, str]) -> None:
        strings = list(strings)
        self._stand_ins = stand_ins
        self._pattern = re.compile(f"({_any_of(strings) or '(?!)'})")
        self._overlapping = re.compile(f"(?s)(?={self._pattern.pattern})(.)")
        self._beginnings = {string[:end] for string in strings for end in range(1, len(string))}
        self._endings = {string[start:] for string in strings for start in range(1, len(string))}
        self._firsts = {string[0] for string in strings}
        self._lasts = {string[-1] for string in strings}
        self._longest = max(map(len, strings), default=0)

    def broken(self, text: str) -> str:
        if self._pattern.search(text):
            text = self._overlapping.sub(lambda match: self._stand_ins[match[2]], text)
        stripped = text.strip()
        tail, head = stripped[-self._longest :], stripped[: self._longest]
        # The last character, if a control string could go on after the text; the first, if one could begin before.
        if not self._firsts.isdisjoint(tail) and any(tail[at:] in self._beginnings for at in range(len(tail))):
            text = self._replaced(text, len(text.rstrip()) - 1)
        if not self._lasts.isdisjoint(head) and any(head[:end] in self._endings for end in range(1, len(head) + 1)):
            text = self._replaced(text, len(text) - len(text.lstrip()))
        return text

    def _replaced(self, text: str, at: int) -> str:
        return text[:at] + self._stand_ins.get(text[at], text[at]) + text[at + 1 :]


def is_control(content: str, special: bool) -> bool:
    """Added tokens that are control tokens: the special ones, and those that look like markup (``<tool_call>``). Added
    words and blank lines are ordinary text."""
    return bool(content.strip()) and (special or re.search(r"[<\[|]", content) is not None)


def _rename(settings: dict[str, Any], names: dict[str, str]) -> None:
    """Rename the control tokens of a ``tokenizer.json`` wherever they occur.

    Merges that would build one from its characters are removed too: no text ever reached them, as added tokens are cut
    out of the text first.
    """
    for token in settings["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = settings["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): index for token, index in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(token, token), score] for token, score in vocabulary]
    if "merges" in model:
        model["merges"] = [m for m in model["merges"] if not {m[0], m[1], m[0] + m[1]} & names.keys()]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    settings |= {"post_processor": None, "truncation": None, "padding": None}


def _any_of(words: Iterable[str]) -> str:
    """A regular expression that matches any of the words, the longest first; shared beginnings are read
    once, so that thousands of words cost no more than one."""
    tails: dict[str, set[str]] = {}
    for word in words:
        tails.setdefault(word[:1], set()).add(word[1:])
    ends = tails.pop("", None) is not None
    choices = "|".join(re.escape(character) + _any_of(rest) for character, rest in sorted(tails.items()))
    if not ends and len(tails) <= 1:
        return choices
    return f"(?:{choices})?" if ends and choices else f"(?:{choices})" if choices else ""
