"""Which token ends an answer: what the chat template writes behind the assistant's turn, found by asking it."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

_PROBE = "qzxjv"
"""An answer that no template contains."""


def special_tokens(tokenizer: Any) -> frozenset[int]:
    """Ids of a tokenizer's special tokens, but for the one that stands for unknown characters."""
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    unknown = {tokenizer.unk_token_id} - {tokenizer.eos_token_id}
    return frozenset(added | set(tokenizer.all_special_ids)) - unknown


def end_of_turn(tokenizer: Any) -> int | None:
    """The first special token that the template writes behind an answer; None if it writes none, or cannot be asked.

    It need not be the tokenizer's end of sequence: base models often have a chat template, but end with their
    end-of-text token. What comes behind it (another end, the header of the next turn) is not the answer's. But where
    several stand together and the tokenizer's end of sequence is among them, that is it: the others close the answer's
    last part (``<|END_RESPONSE|><|END_OF_TURN_TOKEN|>``).
    """
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": _PROBE}]
    special = special_tokens(tokenizer)
    # Within a conversation an end of the whole text is left out.
    last, eos = _behind(tokenizer, talk), tokenizer.eos_token_id
    within = _behind(tokenizer, [*talk, {"role": "user", "content": "Ho"}])
    if all(eos in takewhile(special.__contains__, ids) for ids in (last, within)):
        return int(eos)
    return next((index for index in last if index in special), None)


def _behind(tokenizer: Any, talk: list[dict[str, str]]) -> list[int]:
    """Ids of what the template writes behind the probe; none where it refuses the conversation."""
    try:
        rendered = tokenizer.apply_chat_template(talk, tokenize=False)
    except Exception:  # a template can raise anything
        return []
    _, probe, behind = rendered.rpartition(_PROBE)
    ids: list[int] = tokenizer(behind, add_special_tokens=False)["input_ids"] if probe else []
    return ids
