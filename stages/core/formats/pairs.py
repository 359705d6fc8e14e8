"""Rows that hold a chosen and a rejected answer, or one answer with a label."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stages.core.errors import RowError
from stages.core.formats.fields import Row, column, value, yes_or_no
from stages.core.formats.messages import check_text, common_prefix, messages, prompt, response
from stages.core.records import Message, Messages, PreferencePair

_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):[ ]?")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def preference(row: Row) -> list[PreferencePair]:
    """``prompt``, ``chosen``, ``rejected``, each text or messages; without a prompt it is the common
    beginning of the two message lists (TRL's implicit prompt), as it is where the lists repeat the prompt."""
    chosen, rejected = _side(row, "chosen"), _side(row, "rejected")
    if whole(chosen) and whole(rejected):
        return [_from_conversations(row, chosen, rejected)]
    pair = PreferencePair(prompt_of(row), response(chosen, _named(row, "chosen")),
                          response(rejected, _named(row, "rejected")))  # fmt: skip
    return [different(pair)]


def _named(row: Row, name: str) -> str:
    return column(row, name) or name


def _side(row: Row, name: str) -> Any:
    return value(row, name)


def prompt_of(row: Row) -> Messages:
    """A row's prompt, whatever it is called."""
    return prompt(_asked(row), column(row, "prompt") or "prompt")


def _asked(row: Row) -> Any:
    found = value(row, "prompt")
    if isinstance(found, Mapping) and "messages" in found:  # OpenAI's ``input``
        found = found["messages"]
    extra = row.get("input")
    if column(row, "prompt") == "instruction" and isinstance(found, str) and isinstance(extra, str) and extra.strip():
        return f"{found}\n\n{extra}"  # Alpaca's instruction and what it is about
    return found


def whole(side: Any) -> bool:
    """Whether a side is a conversation with its prompt, not only an answer."""
    if not isinstance(side, list | tuple) or len(side) < 2 or not isinstance(side[0], Mapping):
        return False
    return side[0].get("role", side[0].get("from")) not in ("assistant", "gpt")


def asked_and_answered(row: Row, side: Any, name: str) -> tuple[Messages, Messages]:
    """The prompt and an answer that may come with the messages before it."""
    if not whole(side):
        return prompt_of(row), response(side, name)
    said = messages(side, name, "assistant")
    return with_history(row, prompt(said[:-1], name)), response(side[-1:], name)


def _from_conversations(row: Row, chosen: Any, rejected: Any) -> PreferencePair:
    first, second = messages(chosen, "chosen", "assistant"), messages(rejected, "rejected", "assistant")
    pair = parted(first, second)
    return replace(pair, prompt=with_history(row, pair.prompt))


def with_history(row: Row, shared: Messages) -> Messages:
    """The whole prompt of a row whose answers come with the messages before them: these are the row's own prompt, or
    its last turns, or contain it, or go on where it ends with the assistant's turn.

    Raises:
        RowError: the row's prompt and these messages do not fit together.
    """
    if column(row, "prompt") is None:
        return shared
    name = str(column(row, "prompt"))
    given = messages(_asked(row), name, "user")
    if _inside(given, shared):
        return shared
    if common_prefix(given, shared) == len(shared):
        return shared  # a column with the whole conversation, its answer too
    ends = len(given) - len(shared)
    if ends > 0 and common_prefix(given[ends:], shared) == len(shared):
        return prompt(given, name)
    if given[-1]["role"] in ("assistant", "system") and shared[0]["role"] not in ("assistant", "system"):
        return prompt((*given, *shared), name)
    reason = "is not among the messages that the answers begin with, and they do not go on where it ends"
    raise RowError(name, reason)


def _inside(given: Messages, shared: Messages) -> bool:
    """Whether messages are some of the others, in a row; a single one only has to say the same."""
    texts = [message["content"].strip() for message in shared]
    if len(given) == 1 and given[0]["content"].strip() in texts:
        return True
    return any(common_prefix(given, shared[at:]) == len(given) for at in range(len(shared)))


def parted(chosen: Messages, rejected: Messages) -> PreferencePair:
    """Two conversations that differ in their last message.

    Raises:
        RowError: they differ earlier, do not end with an answer, or do not differ.
    """
    shared = min(common_prefix(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if side[-1]["role"] != "assistant":
            raise RowError(name, f"expected to end with an assistant message, found role {side[-1]['role']}")
        if len(side) - shared != 1:
            raise RowError(name, "the conversations differ before their last message; only the answer may differ")
    if not shared:
        raise RowError("prompt", "missing: chosen and rejected begin with the answer")
    return different(PreferencePair(prompt(chosen[:shared]), chosen[shared:], rejected[shared:]))


def different(pair: PreferencePair) -> PreferencePair:
    if pair.chosen == pair.rejected:
        raise RowError("rejected", "the same text as chosen")
    return pair


def is_transcript(text: Any) -> bool:
    return isinstance(text, str) and "\n\nAssistant:" in text and _TURN.match(text.lstrip(" ")) is not None


def transcript(row: Row) -> list[PreferencePair]:
    """``chosen`` and ``rejected`` as whole conversations in one text each, turns marked ``\\n\\nHuman:`` and
    ``\\n\\nAssistant:`` (Bai et al., arXiv:2204.05862). Such a mark always begins a turn, even inside quoted text."""
    sides = [_turns(value(row, name), name) for name in ("chosen", "rejected")]
    return [parted(*sides)]


def _turns(text: Any, field: str) -> Messages:
    if not is_transcript(text):
        raise RowError(field, r"expected a transcript with \n\nHuman: and \n\nAssistant: turns")
    check_text(text, field)
    parts = _TURN.split(text)[1:]
    turns: list[Message] = []
    for speaker, said in zip(parts[::2], parts[1::2], strict=True):
        if not said.strip():
            raise RowError(field, f"turn {len(turns) + 1} is empty")
        turns.append({"role": _SPEAKERS[speaker], "content": said.strip()})
    return tuple(turns)


def sharegpt(row: Row) -> list[PreferencePair]:
    """``conversations`` of ``{from, value}``, with ``chosen`` and ``rejected`` as one such message each."""
    return preference(row)


def labelled(row: Row) -> list[PreferencePair]:
    """One answer and whether it is good: ``prompt``, ``completion``, ``label``, or ``messages`` that end with the
    answer, and ``label``. It goes on the side that the label names; the other is empty."""
    if both := [name for name in ("chosen", "rejected") if column(row, name)]:
        raise RowError("completion", f"comes with {' and '.join(both)}; give one answer with a label, or a pair")
    if row.get("preference_probability") is not None:
        raise RowError("preference_probability", "means nothing for a single answer; weigh it with weight")
    if column(row, "completion"):
        name = str(column(row, "completion"))
        asked, completion = asked_and_answered(row, value(row, "completion"), name)
    else:
        found = messages(value(row, "prompt"), "messages", "user")
        if found[-1]["role"] != "assistant" or len(found) < 2:
            raise RowError("messages", "expected a conversation that ends with the answer that the label is about")
        asked, completion = prompt(found[:-1], "messages"), found[-1:]
    if (named := column(row, "label")) is None:
        raise RowError("label", "expected true (a good answer) or false (a bad one), missing")
    good = yes_or_no(row[named], "label")
    return [PreferencePair(asked, completion, ()) if good else PreferencePair(asked, (), completion)]
