"""Conversations become token ids of a prompt and of what answers it.

Prompt and response are rendered and tokenised together by the model's own chat template; where the response
begins is found by comparing with the prompt tokenised alone. Text from users can never become a control token
(``stages.core.tokens.control``).
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain, groupby
from typing import Any, NamedTuple

from stages.core.errors import RowError
from stages.core.formats import ROLES
from stages.core.records import Message, Messages, PairIds, PreferencePair
from stages.core.tokens.control import ControlTokens
from stages.core.tokens.ends import end_of_turn, special_tokens
from stages.core.tokens.fields import objects, other_fields
from stages.core.tokens.pair import EncodedPair
from stages.core.tokens.roles import left_out, unusual_order

_SHOWN = 40


class _Chat(NamedTuple):
    """What a template is given: messages and tool definitions, protected, and whether an answer is to follow."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    generation_prompt: bool


@dataclass
class ChatEncoder:
    """Encodes conversations with one tokenizer (a transformers fast tokenizer that has a chat template)."""

    tokenizer: Any
    date: datetime.date | None = None
    """What a template that writes today's date is told."""

    @cached_property
    def template(self) -> str:
        """The chat template's source."""
        named = self.tokenizer.chat_template
        return str(named.get("default", "") if isinstance(named, dict) else named)

    @cached_property
    def _control(self) -> ControlTokens:
        return ControlTokens(self.tokenizer)

    def encoding(self) -> None:
        """Make what encoding needs, which a large tokenizer takes a second for.

        Raises:
            ValueError: this tokenizer's control tokens cannot be told apart from text.
        """
        _ = self._control

    @cached_property
    def _special(self) -> frozenset[int]:
        return special_tokens(self.tokenizer)

    @cached_property
    def ends(self) -> frozenset[int]:
        """Ids of the tokens that end an answer: the template's end of turn, and the tokenizer's end of sequence."""
        found = {end_of_turn(self.tokenizer), self.tokenizer.eos_token_id}
        return frozenset(index for index in found if index is not None)

    def prompt(self, messages: Messages, tools: str = "") -> list[int]:
        """Token ids of a conversation up to where the assistant's answer begins. ``tools`` is the JSON text of the tool
        definitions.

        Raises:
            RowError: as :meth:`pairs` returns it.
        """
        return self._whole(messages, tools, True)

    def conversation(self, messages: Messages, tools: str = "") -> list[int]:
        """Token ids of a whole conversation as the template writes it, with what it writes behind the last turn.

        Raises:
            RowError: as :meth:`pairs` returns it.
        """
        return self._whole(messages, tools, False)

    def _whole(self, messages: Messages, tools: str, prompt: bool) -> list[int]:
        chat = _Chat(self._messages(messages), self._tools(tools) if tools else None, prompt)
        rendered = self._pieces(self._render([chat])[0])
        return list(chain.from_iterable(self._control.encode(rendered)))

    def text(self, messages: Messages, tools: str = "", prompt: bool = False) -> str:
        """What the template makes of a whole conversation, or of a prompt that an answer will follow.

        Raises:
            RowError: the template refuses it, or a text has a reserved character.
        """
        chat = _Chat(self._messages(messages), self._tools(tools) if tools else None, prompt)
        [rendered] = self._render([chat])
        if isinstance(rendered, RowError):
            raise rendered
        return self._control.restored(rendered)

    def pair(self, pair: PreferencePair) -> EncodedPair:
        """One pair of :meth:`pairs`; raises its RowError."""
        [encoded] = self.pairs([pair])
        if isinstance(encoded, RowError):
            raise encoded
        return encoded

    def pairs(self, pairs: Sequence[PreferencePair]) -> list[EncodedPair | RowError]:
        """Token ids of each pair, or why it cannot be used."""
        found = self.ids(pairs)
        return [
            ids if isinstance(ids, RowError) else encoded_pair(pair.pair_id, ids, pair)
            for pair, ids in zip(pairs, found, strict=True)
        ]

    def ids(self, pairs: Sequence[PreferencePair]) -> list[PairIds | RowError]:
        """Token ids of each pair's parts, or why it cannot be used; an empty side stays empty.

        The prompt is the common beginning of prompt, prompt + chosen and prompt + rejected, at most the prompt
        tokenised alone (the last character of a prompt may merge with the response's first).

        The rendered texts are cut before control tokens, where the tokenizer cuts them too, and every piece that
        occurs in the batch is tokenised once. A pair whose ids are known keeps them. A RowError says that the template
        refuses the conversation, or rewrites the prompt once an answer follows, that a response has no tokens, that the
        template makes both the same, or that a text has a reserved character.
        """
        chats: list[_Chat] = []
        places: list[slice | PairIds | RowError] = []
        tools = lru_cache(maxsize=16)(self._tools)
        for pair in pairs:
            if pair.ids is not None:
                places.append(pair.ids)
                continue
            try:
                found = self._chats(pair, tools(pair.tools) if pair.tools else None)
            except RowError as error:
                places.append(error)
                continue
            places.append(slice(len(chats), len(chats) + len(found)))
            chats += found
        numbers: dict[str, int] = {}
        texts: list[list[int] | RowError] = []
        for rendered in self._render(chats):
            try:
                texts.append([numbers.setdefault(piece, len(numbers)) for piece in self._pieces(rendered)])
            except RowError as error:
                texts.append(error)
        tokens = self._control.encode(list(numbers))
        return [
            self._cut(pair, texts[place], tokens) if isinstance(place, slice) else place
            for pair, place in zip(pairs, places, strict=True)
        ]

    def _chats(self, pair: PreferencePair, tools: list[dict[str, Any]] | None) -> list[_Chat]:
        """The prompt alone, and with each answer there is."""
        if not pair.prompt:
            raise RowError("prompt", "has no messages")
        if not pair.chosen and not pair.rejected:
            raise RowError("chosen", "there is neither a chosen nor a rejected answer")
        prompt = self._messages(pair.prompt)
        answers = [self._messages(answer) for answer in (pair.chosen, pair.rejected) if answer]
        return [_Chat(prompt, tools, True), *(_Chat([*prompt, *answer], tools, False) for answer in answers)]

    def _messages(self, messages: Messages) -> list[dict[str, Any]]:
        return [self._message(message) for message in messages]

    def _message(self, message: Message) -> dict[str, Any]:
        if message["role"] not in ROLES:
            raise RowError("role", f"expected one of {', '.join(ROLES)}, found {message['role']!r:.40}")
        own = message["role"] == "assistant"
        protected: dict[str, Any] = {
            "role": message["role"], "content": self._control.protect(message["content"], own=own),
        }  # fmt: skip
        if extra := message.get("extra"):
            for name, value in other_fields(extra).items():
                protected[self._control.protect(name, "messages")] = self._control.protect_json(value, name, own)
        return protected

    def _tools(self, text: str) -> list[dict[str, Any]]:
        tools: list[dict[str, Any]] = self._control.protect_json(objects(text, "tools"), "tools")
        return tools

    def _render(self, chats: Sequence[_Chat]) -> list[str | RowError]:
        """The template's text of each chat, many in one call."""
        texts: list[str | RowError] = [""] * len(chats)
        order = sorted(range(len(chats)), key=lambda i: (id(chats[i].tools), chats[i].generation_prompt))
        for _, same in groupby(order, key=lambda i: (id(chats[i].tools), chats[i].generation_prompt)):
            group = list(same)
            for index, text in zip(group, self._render_alike([chats[i] for i in group]), strict=True):
                texts[index] = _in_order(chats[index], text)
        return texts

    def _render_alike(self, chats: Sequence[_Chat]) -> list[str | RowError]:
        """Text of chats with the same tools and end. If one fails, halves are tried until it is found."""
        try:
            texts: list[str | RowError] = self.tokenizer.apply_chat_template(
                [chat.messages for chat in chats], tools=chats[0].tools, tokenize=False,
                add_generation_prompt=chats[0].generation_prompt, continue_final_message=False,
                strftime_now=self._strftime,
            )  # fmt: skip
            return texts
        except Exception as error:  # a template can raise anything
            if len(chats) == 1:
                return [RowError("", f"the chat template refuses this conversation: {error}"[:200])]
        half = len(chats) // 2
        return self._render_alike(chats[:half]) + self._render_alike(chats[half:])

    def _strftime(self, pattern: str) -> str:
        if self.date is None:
            raise ValueError("it writes today's date; give the date to write as policy.date")
        return self.date.strftime(pattern)

    def _pieces(self, rendered: str | RowError) -> list[str]:
        if isinstance(rendered, RowError):
            raise rendered
        return self._control.pieces(rendered)

    def _cut(
        self, pair: PreferencePair, texts: Sequence[list[int] | RowError], tokens: Sequence[list[int]]
    ) -> PairIds | RowError:
        """A pair's parts from the numbers of its texts' pieces: the prompt's, then each answer's after the prompt."""
        sequences = []
        for text in texts:
            if isinstance(text, RowError):
                return text
            sequences.append(list(chain.from_iterable([tokens[number] for number in text])))
        prompt, *answered = sequences
        boundary = min(_common(prompt, sequence) for sequence in answered)
        if boundary < len(prompt) - 1:
            alone = self.tokenizer.decode(prompt[boundary:])[:_SHOWN]
            reason = "the chat template renders the prompt differently once an answer follows"
            return RowError("prompt", f"{reason}: alone it ends with {alone!r}")
        left = iter(answered)
        try:
            chosen, rejected = (
                self._completion(next(left)[boundary:], ended, field) if answer else []
                for answer, ended, field in (
                    (pair.chosen, pair.chosen_ended, "chosen"), (pair.rejected, pair.rejected_ended, "rejected"),
                )
            )  # fmt: skip
        except RowError as error:
            return error
        if chosen == rejected:
            return RowError("rejected", "the same as chosen once the chat template has written both")
        return PairIds(prompt[:boundary], chosen, rejected)

    def _completion(self, ids: list[int], ended: bool, field: str) -> list[int]:
        """The response up to its end-of-turn token, which counts only if the response was not cut off.

        That is the first of :attr:`ends`. Some templates end certain turns (calls of tools) with another special token:
        then it is the last special one. A template that writes none is taken to end with the tokenizer's end of
        sequence.
        """
        places = [i for i, index in enumerate(ids) if index in self._special]
        at = next((i for i in places if ids[i] in self.ends), places[-1] if places else None)
        text, end = (ids, self.tokenizer.eos_token_id) if at is None else (ids[:at], ids[at])
        if not ended:
            while text and text[-1] in self._special:  # what closes the answer's last part did not come either
                text = text[:-1]
        if not text:
            raise RowError(field, "no tokens: the chat template writes nothing of it")
        return [*text, end] if ended and end is not None else text


def _in_order(chat: _Chat, rendered: str | RowError) -> str | RowError:
    """The template's text of a chat, or why it cannot be used if its roles come in an order that the template does not
    support."""
    order = unusual_order(chat.messages)
    if order is None:
        return rendered
    if isinstance(rendered, RowError):
        return RowError("messages", f"{rendered.reason}; the roles come as {order}")
    if left_out(chat.messages, rendered):
        return RowError("messages", f"the chat template leaves out or moves a message; the roles come as {order}")
    return rendered


def encoded_pair(pair_id: str, ids: PairIds, pair: PreferencePair) -> EncodedPair:
    """A pair's token ids and its other fields."""
    return EncodedPair(
        pair_id=pair_id,
        prompt_ids=ids.prompt,
        chosen_ids=ids.chosen,
        rejected_ids=ids.rejected,
        probability=pair.probability,
        weight=pair.weight,
        source=pair.source,
    )


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix."""
    if b[: len(a)] == a:
        return len(a)
    for index, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return index
    return min(len(a), len(b))
