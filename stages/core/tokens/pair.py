"""A preference pair as token ids."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class EncodedPair:
    """A pair as token ids. Every token of a response counts, none of the prompt's. The rest is as in
    ``PreferencePair``; ``task`` names the source's place in the mixture."""

    pair_id: str
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    probability: float = 1.0
    weight: float = 1.0
    task: str = ""
    source: str = ""

    @property
    def name(self) -> str:
        """The pair's name for people: its id and, if known, where it came from."""
        return f"{self.pair_id} ({self.source})" if self.source else self.pair_id


def mismatched(pair: EncodedPair, other: EncodedPair) -> EncodedPair:
    """A pair's prompt with the answer to another prompt as ``chosen``; ``rejected`` is empty."""
    return replace(pair, chosen_ids=other.chosen_ids or other.rejected_ids, rejected_ids=[])
