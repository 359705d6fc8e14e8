"""A preference pair as token ids."""

from __future__ import annotations

from dataclasses import dataclass, replace


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
        """The pair's name for people: its id and, if known, where it came from."""
        return f"{self.pair_id} ({self.source})" if self.source else self.pair_id


def mismatched(pair: EncodedPair, other: EncodedPair) -> EncodedPair:
    """A pair's prompt with the answer to another prompt as ``chosen``; ``rejected`` is empty."""
    ids, mask = (other.chosen_ids, other.chosen_mask) if other.chosen_ids else (other.rejected_ids, other.rejected_mask)
    return replace(pair, chosen_ids=ids, chosen_mask=mask, rejected_ids=[], rejected_mask=[])
