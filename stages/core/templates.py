"""Conversations become token ids and a completion mask.

Prompt and response are rendered and tokenised together by the model's own chat template; where the response
begins is found by comparing with the prompt tokenised alone. Text from users can never become a control token.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from stages.core.formats import RowError
from stages.core.records import Message, Messages, PreferencePair

_PRIVATE_USE = (*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE))


@dataclass(frozen=True)
class EncodedPair:
    """A pair as token ids. Masks mark the response's tokens that count; the prompt's never do. The rest is as in
    ``PreferencePair``; ``task`` names the source's place in the mixture."""

    pair_id: str
    prompt_ids: list[int]
    chosen_ids: list[int]
    chosen_mask: list[bool]
    rejected_ids: list[int]
    rejected_mask: list[bool]
    probability: float = 1.0
    weight: float = 1.0
    task: str = ""
    source: str = ""

    @property
    def name(self) -> str:
        """The pair for people: its id and, if known, where it came from."""
        return f"{self.pair_id} ({self.source})" if self.source else self.pair_id


def mismatched(pair: EncodedPair, other: EncodedPair) -> EncodedPair:
    """A pair's prompt with the answer to another prompt, as ``chosen``; nothing is rejected."""
    ids, mask = (other.chosen_ids, other.chosen_mask) if other.chosen_ids else (other.rejected_ids, other.rejected_mask)
    return replace(pair, chosen_ids=ids, chosen_mask=mask, rejected_ids=[], rejected_mask=[])


@dataclass
class ChatEncoder:
    """Encodes conversations with one tokenizer (a transformers fast tokenizer that has a chat template)."""

    tokenizer: Any

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        added = {index for index, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return frozenset(added) | frozenset(self.tokenizer.all_special_ids)

    @cached_property
    def _control(self) -> list[str]:
        """Strings that the tokenizer would read as control tokens: the special ones, and added ones that look like
        markup (``<tool_call>``). Added words and blank lines are ordinary text."""
        added = self.tokenizer.added_tokens_decoder.values()
        texts = {str(token) for token in added if token.special or re.search(r"[<\[|]", str(token))}
        return sorted(filter(str.strip, texts | set(self.tokenizer.all_special_tokens)))

    @cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        """Matches the first character of every control string, also of those that overlap."""
        choices = "|".join(map(re.escape, self._control)) or r"(?!)"
        return re.compile(rf"(?s)(?=(?:{choices}))(.)")

    def prompt(self, messages: Messages) -> list[int]:
        """Token ids of a conversation up to where the assistant's answer begins."""
        return self._encode(messages, generation_prompt=True)

    def pair(self, pair: PreferencePair) -> EncodedPair:
        """Token ids of a pair; a side that is empty stays so.

        The prompt is what prompt, prompt + chosen and prompt + rejected have in common, at most the prompt
        tokenised alone (the last character of a prompt may merge with the response's first).

        Raises:
            RowError: the template rewrites the prompt once an answer follows, or a response has no tokens.
        """
        prompt = self.prompt(pair.prompt)
        chosen, rejected = (
            self._encode([*pair.prompt, *response]) if response else None for response in (pair.chosen, pair.rejected)
        )
        boundary = min(_common(prompt, sequence) for sequence in (chosen, rejected) if sequence is not None)
        if boundary < len(prompt) - 1:
            raise RowError("prompt", "the chat template renders the prompt differently once an answer follows")
        chosen_ids = self._completion(chosen[boundary:], pair.chosen_ended, "chosen") if chosen else []
        rejected_ids = self._completion(rejected[boundary:], pair.rejected_ended, "rejected") if rejected else []
        return EncodedPair(
            pair_id=pair.pair_id,
            prompt_ids=prompt[:boundary],
            chosen_ids=chosen_ids,
            chosen_mask=[True] * len(chosen_ids),
            rejected_ids=rejected_ids,
            rejected_mask=[True] * len(rejected_ids),
            probability=pair.probability,
            weight=pair.weight,
            source=pair.source,
        )

    def _completion(self, ids: list[int], ended: bool, field: str) -> list[int]:
        """The response up to its end-of-turn token, which counts only if the response ended by itself.

        The end of the turn is the last token of its own that the template writes, such as ``<|im_end|>``; a
        template that writes none is taken to end with the tokenizer's end-of-sequence token.
        """
        last = max((i for i, token in enumerate(ids) if token in self._special_ids), default=None)
        text, end = (ids, self.tokenizer.eos_token_id) if last is None else (ids[:last], ids[last])
        if not text:
            raise RowError(field, "no tokens after tokenising")
        return [*text, end] if ended and end is not None else text

    def _encode(self, messages: Messages, generation_prompt: bool = False) -> list[int]:
        """Render and tokenise. Control strings in the messages are broken by a mark before rendering; the rendered
        text is cut at the marks and the pieces tokenised apart, so that none can be read as a control token."""
        mark = _unused_character(messages)
        marked = [self._break_control(message, mark) for message in messages]
        text = self.tokenizer.apply_chat_template(
            marked, tokenize=False, add_generation_prompt=generation_prompt, continue_final_message=False
        )
        ids: list[int] = []
        for piece in text.split(mark):
            ids += self.tokenizer(piece, add_special_tokens=False)["input_ids"]
        return ids

    def _break_control(self, message: Message, mark: str) -> Message:
        for token in self._control:
            if len(token) == 1 and token in message["content"]:
                raise RowError("content", f"contains {token!r}, which this tokenizer can only read as a control token")
        broken = self._control_pattern.sub(lambda match: match[1] + mark, message["content"])
        return {"role": message["role"], "content": broken}


def _unused_character(messages: Messages) -> str:
    used = {character for message in messages for character in message["content"]}
    for code in _PRIVATE_USE:
        if chr(code) not in used:
            return chr(code)
    raise RowError("content", "uses every private-use character there is")


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix."""
    for index, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return index
    return min(len(a), len(b))
