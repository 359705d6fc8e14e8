"""Responses closed as the chat template closes an answer: what a reward model reads to its last token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from stages.base import StageError
from stages.core.tokens.pair import EncodedPair
from stages.core.tokens.templates import ChatEncoder
from stages.data.shards import ShardData

_ASKED = [{"role": "user", "content": "Hi"}]
_ANSWERS = ("qzxjv", "wkvbq")
"""Answers that no template contains, and that end in different tokens."""


def closing(encoder: ChatEncoder) -> list[int]:
    """What the template writes behind the last answer of a conversation: its end of turn, and for many templates a line
    break behind it. Token shards hold no more than the end of turn."""
    one, other = (encoder.conversation([*_asked(), {"role": "assistant", "content": text}]) for text in _ANSWERS)
    same = 0
    while same < min(len(one), len(other)) and one[-1 - same] == other[-1 - same]:
        same += 1
    return one[len(one) - same :]


def _asked() -> Any:
    return list(_ASKED)


def padding(encoder: ChatEncoder, known: int | None) -> int:
    """The id of a token to pad with. transformers takes the last token that is not padding for the end of a sequence,
    so that it must not be one that a conversation ends with: many models pad with their end of turn."""
    tokenizer = encoder.tokenizer
    special = sorted(tokenizer.all_special_ids)
    candidates = [known, tokenizer.pad_token_id, *special, *range(len(tokenizer))]
    ending = closing(encoder)
    found: int = next(index for index in candidates if index is not None and index not in ending)
    return found


class ClosedPairs:
    """Pairs of shards (``PairData``) with both responses closed alike, those too that were cut off: so the judge
    ``reward_model`` reads answers, by the template of the whole conversation."""

    def __init__(self, data: ShardData, encoder: ChatEncoder) -> None:
        self._data, self._closing, self._ends = data, closing(encoder), encoder.ends

    def __len__(self) -> int:
        return len(self._data)

    def pairs(self, indices: Sequence[int]) -> list[EncodedPair]:
        """Raises:
        StageError: a row has only one response.
        """
        return [self._closed(pair) for pair in self._data.pairs(indices)]

    def reference(self, indices: Sequence[int]) -> Tensor:
        return self._data.reference(indices)

    def mismatched(self, indices: Sequence[int]) -> list[EncodedPair]:  # noqa: ARG002 - PairData
        return []

    def _closed(self, pair: EncodedPair) -> EncodedPair:
        if not pair.chosen_ids or not pair.rejected_ids:
            raise StageError(f"{pair.name} has only one response; a reward model is trained on pairs")
        return replace(pair, chosen_ids=self._whole(pair.chosen_ids), rejected_ids=self._whole(pair.rejected_ids))

    def _whole(self, ids: list[int]) -> list[int]:
        text = ids[:-1] if ids[-1] in self._ends else ids
        return [*text, *self._closing]
