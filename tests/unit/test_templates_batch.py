"""Pairs in batches are what they are one by one, and what the tokenizer makes of the whole text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from stages.core.errors import RowError
from stages.core.records import Message, PreferencePair
from stages.core.tokens.pair import EncodedPair
from stages.core.tokens.templates import ChatEncoder
from tests import chats, tiny

PLAIN = [
    "Name a colour.", "the end", " leading and trailing ", "two\n\nlines\n", "\n\n\n", "Größe 🌍 \u200b\t x", "", "a",
    "def f(a): return a < 1 > 2 [3] | 4", "<", ">", "[x]", "<|", "＜|im_end|＞", "\ue000", "|>", "]", "NAME [INS T]",
]  # fmt: skip
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Of a city.", "parameters": {}}}]


def pair(prompt: str, chosen: str = "Blue.", rejected: str = "Seven.", **changes: Any) -> PreferencePair:
    def said(text: str) -> list[Message]:
        return [{"role": "assistant", "content": text}]

    return PreferencePair([{"role": "user", "content": prompt}], said(chosen), said(rejected), **changes)


def whole(tokenizer: Any, messages: Sequence[Message], **options: Any) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template(list(messages), return_dict=False, **options)
    return ids


@pytest.mark.parametrize("name", chats.FAMILIES)
def test_pieces_give_the_ids_of_the_whole_text(name: str) -> None:
    tokenizer = chats.tokenizer(name)
    encoder = ChatEncoder(tokenizer)
    unknown = {tokenizer.unk_token_id, *tokenizer("", add_special_tokens=False)["input_ids"]}
    blank = unknown | set(tokenizer.convert_tokens_to_ids(["▁"]))  # unknown characters may merge with the prompt's last
    texts = [text for text in PLAIN if set(tokenizer(text.strip(), add_special_tokens=False)["input_ids"]) - blank]
    pairs = [pair(a, b, f"{b} {a}") for a in texts for b in texts]
    for each, found in zip(pairs, encoder.pairs(pairs), strict=True):
        assert isinstance(found, EncodedPair), found
        prompt = whole(tokenizer, each.prompt, add_generation_prompt=True)
        assert encoder.prompt(each.prompt) == prompt
        assert len(prompt) - len(found.prompt_ids) in (0, 1)
        for answer, ids in ((each.chosen, found.chosen_ids), (each.rejected, found.rejected_ids)):
            expected = whole(tokenizer, [*each.prompt, *answer])
            joined = [*found.prompt_ids, *ids]
            assert joined[:-1] == expected[: len(joined) - 1]  # the last may be an end that the template leaves out


def test_a_batch_gives_what_its_pairs_give_one_by_one() -> None:
    encoder = ChatEncoder(tiny.tokenizer())
    reserved = "\U0010fffd"
    base = pair("Name a colour.")
    pairs = [
        base, pair("Name a colour.", "Red.", "Six."), pair(reserved), replace(base, chosen_ended=False),
        pair("x", "", "b"), replace(base, rejected=()), replace(base, chosen=()), base,
        pair("<|im_end|>", "<|im_start|>", "<|im_end|>"), replace(base, prompt=[{"role": "joker", "content": "x"}]),
        replace(base, prompt=()), replace(base, chosen=(), rejected=()), pair("x", probability=0.25, weight=2.0),
        replace(base, tools="{"), replace(base, tools=json.dumps(TOOLS)), replace(base, source="file:3"),
    ]  # fmt: skip
    together = encoder.pairs(pairs)
    alone = [encoder.pairs([each])[0] for each in pairs]
    assert [str(a) for a in together] == [str(b) for b in alone]
    refused = [str(found) for found in together if isinstance(found, RowError)]
    assert refused == [
        "content: contains the private-use character U+10FFFD, which is reserved",
        "chosen: no tokens: the chat template writes nothing of it",
        "role: expected one of system, user, assistant, tool, found 'joker'",
        "prompt: has no messages",
        "chosen: there is neither a chosen nor a rejected answer",
        "tools: not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
    ]
    assert encoder.pairs([]) == []
    assert [type(found) for found in encoder.pairs([pair(reserved)])] == [RowError]


def test_each_piece_of_a_batch_is_tokenised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = ChatEncoder(tiny.tokenizer())
    control = encoder._control
    seen: list[str] = []
    encode = control.encode
    monkeypatch.setattr(control, "encode", lambda pieces: (seen.extend(pieces), encode(pieces))[1])
    encoder.pairs([pair("Same."), pair("Same.", "Red.")])
    assert len(seen) == len(set(seen))
    assert sum("Same." in piece for piece in seen) == 1


def test_a_template_that_refuses_one_conversation_spoils_no_other() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = (
        "{% if 'bad' in messages[0].content %}{{ raise_exception('no!') }}{% endif %}" + tiny.TEMPLATE
    )
    pairs = [pair(text) for text in ("good", "bad", "fine", "too bad", "well")]
    found = ChatEncoder(tokenizer).pairs(pairs)
    reason = "the chat template refuses this conversation: no!"
    assert [str(each) == reason for each in found] == [False, True, False, True, False]


def test_what_stands_for_unknown_characters_ends_no_turn() -> None:
    """WordPiece writes unknown words as [UNK], which is special too, and this template ends with a text."""
    tokenizer = chats.tokenizer("wordpiece")
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + ' ' }}{% endfor %}"
    tokenizer = type(tokenizer)(
        tokenizer_object=tokenizer.backend_tokenizer, unk_token="[UNK]", eos_token="[SEP]", chat_template=template
    )
    encoded = ChatEncoder(tokenizer).pair(pair("the", "the \u2603 end", "end"))
    assert tokenizer.decode(encoded.chosen_ids).endswith("the [UNK] end [SEP]")


def test_tools_and_calls_reach_the_template_as_data() -> None:
    tokenizer = chats.tokenizer("chatml")
    encoder = ChatEncoder(tokenizer)
    calls = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}]
    asked: Message = {"role": "assistant", "content": "", "extra": json.dumps({"tool_calls": calls})}
    each = replace(pair("Hi."), chosen=[asked], tools=json.dumps(TOOLS))
    found = encoder.pair(each)
    given = [{"role": "assistant", "content": "", "tool_calls": calls}]
    expected = whole(tokenizer, [*each.prompt, *given], tools=TOOLS)  # type: ignore[list-item]
    joined = [*found.prompt_ids, *found.chosen_ids]
    assert joined == expected[: len(joined)]
    assert tokenizer.decode(expected[len(joined) :]) == "\n"
    assert '"name": "weather"' in tokenizer.decode(found.prompt_ids)


def test_arguments_of_a_call_that_are_json_text_become_data() -> None:
    def encoded(arguments: object) -> EncodedPair:
        calls = [{"function": {"name": "weather", "arguments": arguments}}]
        answer: Message = {"role": "assistant", "content": "", "extra": json.dumps({"tool_calls": calls})}
        return ChatEncoder(chats.tokenizer("chatml")).pair(replace(pair("Hi."), chosen=[answer]))

    assert encoded('{"city": "Rome"}').chosen_ids == encoded({"city": "Rome"}).chosen_ids


def test_arguments_that_are_not_json_are_refused() -> None:
    calls = [{"function": {"name": "f", "arguments": "{"}}]
    answer: Message = {"role": "assistant", "content": "", "extra": json.dumps({"tool_calls": calls})}
    with pytest.raises(RowError, match="the arguments of a call are not JSON") as caught:
        ChatEncoder(chats.tokenizer("chatml")).pair(replace(pair("Hi."), chosen=[answer]))
    assert caught.value.field == "tool_calls"
