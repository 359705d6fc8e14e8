"""Pairs that are too long to train on: left out, or cut at one end."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from stages.core.errors import RowError
from stages.core.tokens.pair import EncodedPair


class Cut(NamedTuple):
    """A pair that fits, and what had to be cut for it."""

    pair: EncodedPair
    prompt: bool = False
    response: bool = False


def truncated(pair: EncodedPair, max_length: int, policy: str) -> Cut:
    """Fit a pair into ``max_length`` tokens of prompt and response together.

    Args:
        policy: ``drop`` cuts nothing. ``keep_start`` keeps the first tokens of each sequence. ``keep_end`` keeps the
            responses and the last tokens of the prompt, at least one; responses that leave no room for that are
            cut at their end. Both sides of a pair keep the same prompt. A cut response has no end token.

    Raises:
        RowError: the pair is too long (``drop``), or no response tokens, or no difference, would be left.
    """
    prompt, longest = len(pair.prompt_ids), max(len(pair.chosen_ids), len(pair.rejected_ids))
    if prompt + longest <= max_length:
        return Cut(pair)
    if policy == "drop":
        raise RowError("", f"longer than prepare.max_length {max_length}")
    kept = prompt if policy == "keep_start" else min(prompt, max(1, max_length - longest))
    room = max_length - kept
    if room < 1:
        raise RowError("", f"the prompt alone fills prepare.max_length {max_length}; nothing of a response is left")
    cut = replace(
        pair,
        prompt_ids=pair.prompt_ids[prompt - kept :],
        chosen_ids=pair.chosen_ids[:room],
        rejected_ids=pair.rejected_ids[:room],
    )
    if cut.chosen_ids == cut.rejected_ids:
        raise RowError("rejected", f"the same as chosen once cut to prepare.max_length {max_length}")
    return Cut(cut, kept < prompt, longest > room)
