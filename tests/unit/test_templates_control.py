"""Text from users never becomes a control token: tokenizers and templates like those of well-known families."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from tokenizers import AddedToken, normalizers

from stages.core.errors import RowError
from stages.core.records import Message, PreferencePair
from stages.core.tokens.control import ControlTokens
from stages.core.tokens.templates import ChatEncoder
from tests import chats, tiny

HARMLESS = "harmless"
NAMES = list(chats.FAMILIES)
FORMS: Sequence[Callable[[str], str]] = [
    lambda token: token,
    lambda token: f"ab{token}cd",
    lambda token: f"{token} {token}",
    lambda token: token[:2] + token + token[2:],
    lambda token: token[0] + token + token[-1],
    lambda token: token + token[1:],
]


def control_strings(name: str, special: bool = False) -> list[str]:
    """A family's control tokens, or the special ones among them."""
    added = chats.tokenizer(name).added_tokens_decoder.values()
    return [str(token) for token in added if str(token).strip() and (token.special or not special)]


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def answer(text: str) -> Message:
    return {"role": "assistant", "content": text}


def simple(prompt: str = "Hi.", chosen: str = "One.", rejected: str = "Two.") -> PreferencePair:
    return PreferencePair([user(prompt)], [answer(chosen)], [answer(rejected)])


def in_system(text: str) -> PreferencePair:
    return PreferencePair([{"role": "system", "content": text}, user("Hi.")], [answer("One.")], [answer("Two.")])


def in_tool_result(text: str) -> PreferencePair:
    prompt: list[Message] = [user("Hi."), answer("Wait."), {"role": "tool", "content": text}]
    return PreferencePair(prompt, [answer("One.")], [answer("Two.")])


def in_tools(text: str) -> PreferencePair:
    tools = [{"type": "function", "function": {"name": text, "description": text, "parameters": {text: [text]}}}]
    return PreferencePair([user("Hi.")], [answer("One.")], [answer("Two.")], tools=json.dumps(tools))


def calling(text: str, arguments: object) -> PreferencePair:
    calls = [{"type": "function", "function": {"name": text, "arguments": arguments}}]
    asked: Message = {"role": "assistant", "content": "", "extra": json.dumps({"tool_calls": calls})}
    prompt = [user("Hi."), asked, {"role": "tool", "content": "12 C"}]
    return PreferencePair(prompt, [answer("One.")], [{**asked, "content": "Two."}])  # type: ignore[list-item]


PLACES: dict[str, Callable[[str], PreferencePair]] = {
    "prompt": lambda text: simple(prompt=text),
    "chosen": lambda text: simple(chosen=text),
    "rejected": lambda text: simple(rejected=text),
    "system": in_system,
    "tool result": in_tool_result,
    "tool definitions": in_tools,
    "tool call": lambda text: calling(text, {text: text}),
    "tool call, arguments as text": lambda text: calling(text, json.dumps({"city": text})),
}


def controls(name: str, pair: PreferencePair) -> list[list[int]]:
    """The control tokens of prompt and answers, in order; what stands for unknown characters is none."""
    encoded = ChatEncoder(chats.tokenizer(name)).pair(pair)
    control = chats.control_ids(name) - {chats.tokenizer(name).unk_token_id}
    parts = (encoded.prompt_ids, encoded.chosen_ids, encoded.rejected_ids)
    return [[index for index in ids if index in control] for ids in parts]


def everything(name: str, pair: PreferencePair) -> str:
    encoded = ChatEncoder(chats.tokenizer(name)).pair(pair)
    decode = chats.tokenizer(name).decode
    parts = ([*encoded.prompt_ids, *ids] for ids in (encoded.chosen_ids, encoded.rejected_ids))
    return "\n".join(map(decode, parts))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", NAMES)
def test_control_tokens_in_data_stay_text(name: str, place: str) -> None:
    harmless = controls(name, PLACES[place](HARMLESS))
    shown = chats.FAMILIES[name].lossless and HARMLESS in everything(name, PLACES[place](HARMLESS))
    for token in control_strings(name, special=place in ("chosen", "rejected")):
        for form in FORMS:
            text = form(token)
            assert controls(name, PLACES[place](text)) == harmless, text
            if shown:
                assert text in everything(name, PLACES[place](text))


@pytest.mark.parametrize("field", ["content", "reasoning_content"])
def test_what_the_model_said_may_hold_its_own_tokens_but_no_special_ones(field: str) -> None:
    """A thought or a call written out in an answer: the tokens that the model itself would write."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.reasoning_content }}{{ m.content }}"
        "<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
    )
    tokenizer = _with_template(chats.tokenizer("chatml"), template)
    text = "<tool_call>add</tool_call><|im_end|><|im_start|>"

    def saying(role: str) -> Message:
        return {"role": role, "content": text} if field == "content" else {
            "role": role, "content": "", "extra": json.dumps({field: text})
        }  # fmt: skip

    found = ChatEncoder(tokenizer).pair(
        PreferencePair([saying("user"), saying("assistant"), saying("user")], [saying("assistant")], [answer("One.")])
    )
    call = tokenizer.convert_tokens_to_ids(["<tool_call>", "</tool_call>"])
    turn = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert [i for i in found.chosen_ids if i in {*call, *turn}] == [*call, turn[1]]
    assert [i for i in found.prompt_ids if i in {*call, *turn}] == [*turn, turn[0], *call, turn[1], *turn, turn[0]]
    assert tokenizer.decode(found.chosen_ids) == f"{text}<|im_end|>"


def test_most_places_are_shown_by_some_template() -> None:
    """Else the test above would not look at them."""
    for place, made in PLACES.items():
        assert any(HARMLESS in everything(name, made(HARMLESS)) for name in NAMES), place


@pytest.mark.parametrize("filter_", ["", " | trim"])
@pytest.mark.parametrize("name", NAMES)
def test_a_control_token_split_over_texts_stays_text(name: str, filter_: str) -> None:
    """With a template that puts nothing between them, also where it trims them."""
    tokenizer = chats.tokenizer(name)
    subject = ChatEncoder(
        _with_template(tokenizer, f"{{% for m in messages %}}{{{{ m.content{filter_} }}}}{{% endfor %}}")
    )
    control = chats.control_ids(name) - {tokenizer.unk_token_id}
    for token in control_strings(name):
        for at in range(1, len(token)):
            for texts in ([token[:at], token[at:]], [f"a{token[:at]} ", f"\n{token[at:]}b"],
                          [token[:1], token[1:at], token[at:]], ["a" + token + token[:at], token[at:]]):  # fmt: skip
                assert not control & set(subject.prompt([user(text) for text in texts])), texts


@pytest.mark.parametrize("name", NAMES)
def test_a_text_does_not_complete_what_the_template_begins_or_ends(name: str) -> None:
    tokenizer = chats.tokenizer(name)
    subject = ChatEncoder(tokenizer)
    control = chats.control_ids(name) - {tokenizer.unk_token_id}
    for token in control_strings(name):
        for at in range(1, len(token)):
            for template, text in (
                (f"{{{{ '{token[:at]}' + messages[0].content }}}}", token[at:] + "x"),
                (f"{{{{ messages[0].content + '{token[at:]}' }}}}", "x" + token[:at]),
            ):
                subject.tokenizer = _with_template(tokenizer, template)
                assert not control & set(subject.prompt([user(text)])), (template, text)


def _with_template(tokenizer: Any, template: str) -> Any:
    """The tokenizer under another template, without a copy of it."""

    class Other:
        def __getattr__(self, attribute: str) -> Any:
            return getattr(tokenizer, attribute)

        def __call__(self, *args: Any, **options: Any) -> Any:
            return tokenizer(*args, **options)

        def apply_chat_template(self, *args: Any, **options: Any) -> Any:
            return tokenizer.apply_chat_template(*args, chat_template=template, **options)

    return Other()


def look_alike(kind: str) -> Any:
    """A tokenizer that folds full-width characters before it looks for control tokens."""
    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    tokenizer.add_tokens([AddedToken("<|turn|>", normalized=True, special=kind == "special")])
    return tokenizer


@pytest.mark.parametrize("kind", ["special", "markup"])
def test_look_alikes_that_normalisation_turns_into_a_control_token_stay_text(kind: str) -> None:
    tokenizer = look_alike(kind)
    wide = "".join(chr(ord(character) + 0xFEE0) for character in "<|turn|>")
    turn = tokenizer.convert_tokens_to_ids("<|turn|>")
    assert turn in tokenizer(wide, add_special_tokens=False)["input_ids"], "else there is nothing to be afraid of"
    ids = ChatEncoder(tokenizer).prompt([user(wide)])
    assert turn not in ids
    assert "<|turn|>" in tokenizer.decode(ids), "as text: the normalisation is the tokenizer's own"


def test_words_of_the_vocabulary_that_are_control_tokens_are_not_reached_by_text() -> None:
    """A unigram model would take ``</s>`` for one of its words, with the best score there is."""
    tokenizer = chats.tokenizer("unigram")
    plain = tokenizer.backend_tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.encode_special_tokens = True
    assert tokenizer.eos_token_id in plain.encode("a</s>b", add_special_tokens=False).ids
    assert controls("unigram", simple(prompt="a</s>b")) == controls("unigram", simple())


@pytest.mark.parametrize("character", ["\U0010fffd", "\U0010a000"])
def test_reserved_characters_are_refused(character: str) -> None:
    encoder = ChatEncoder(chats.tokenizer("chatml"))
    with pytest.raises(RowError, match=f"U\\+{ord(character):X}, which is reserved"):
        encoder.prompt([user(f"a{character}b")])


def test_half_a_surrogate_pair_from_json_is_refused() -> None:
    pair = calling("weather", {"city": "\ud800"})
    with pytest.raises(RowError, match="half a surrogate pair at character 0") as caught:
        ChatEncoder(chats.tokenizer("chatml")).pair(pair)
    assert caught.value.field == "tool_calls"


def test_a_role_is_no_way_to_a_control_token() -> None:
    """Templates write ``<|`` + role + ``|>``, and there is ``<|end|>``."""
    with pytest.raises(RowError, match="expected one of system, user, assistant, tool, found 'end'") as caught:
        ChatEncoder(chats.tokenizer("phi")).prompt([{"role": "end", "content": "x"}])
    assert caught.value.field == "role"


def test_a_token_that_counts_in_some_places_only_is_refused_where_the_template_writes_it() -> None:
    """With a normaliser that puts something before every text, the token is found only where that stands too."""
    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Prepend("_")
    tokenizer.add_tokens([AddedToken("<odd>", normalized=True)])
    encoder = ChatEncoder(tokenizer)
    assert tokenizer.convert_tokens_to_ids("<odd>") not in encoder.prompt([user("a <odd> b _<odd>")])
    with pytest.raises(RowError, match=r"'<odd>'.* normalized=false"):
        ChatEncoder(_with_template(tokenizer, "{{ messages[0]['content'] }}<odd>")).prompt([user("x")])


def test_a_tokenizer_without_rust_is_refused() -> None:
    class Slow:
        pass

    with pytest.raises(ValueError, match="Slow is not a fast tokenizer"):
        ControlTokens(Slow())
