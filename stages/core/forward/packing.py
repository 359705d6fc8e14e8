"""Pairs become the tensors of one forward pass: packed into one row, or padded into a rectangle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.core.forward.segments import Segment, Segments
from stages.core.forward.transfer import send
from stages.core.tokens.pair import EncodedPair

Layout = Literal["shared", "packed", "padded"]
"""``shared``: one row without padding, a pair's prompt in it once. ``packed``: one row, every sequence on its own.
``padded``: a rectangle of sequences, for models that take no other form."""

_MULTIPLE = 16
"""Rows are padded to a multiple of this: matrix products are slower at odd sizes."""


@dataclass(frozen=True)
class Batch:
    """What a model needs to score the responses of some pairs.

    Sequences are numbered 2 * pair for the chosen response and 2 * pair + 1 for the rejected one. All tensors are
    int64. ``ids`` and ``positions``: [tokens] in one row, or [sequences, length] when padded. ``rows``: for every
    response token, where in the flattened ``ids`` the token before it is. ``targets``: that
    response token. ``sequences``: the sequence it belongs to. These three follow the pairs; those of pair i are
    ``bounds[i]`` to ``bounds[i + 1]``. ``answered``: the sequences that have a response, ``ends``: where in the
    flattened ``ids`` the last token of each is. ``segments`` is None when padded.
    """

    ids: Tensor
    positions: Tensor
    rows: Tensor
    targets: Tensor
    sequences: Tensor
    answered: Tensor
    ends: Tensor
    bounds: tuple[int, ...]
    segments: Segments | None

    @property
    def pairs(self) -> int:
        return len(self.bounds) - 1

    def to(self, device: torch.device) -> Batch:
        """On another device. A packed row gets one of a few lengths there, for which its attention is compiled."""
        if device.type == "cpu":
            return self
        batch = self if self.segments is None else self._lengthened()
        names = ("ids", "positions", "rows", "targets", "sequences", "answered", "ends")
        sent: dict[str, Any] = {name: send(getattr(batch, name), device) for name in names}
        return replace(batch, **sent)

    def _lengthened(self) -> Batch:
        from stages.core.forward.flex import row_length

        more = row_length(len(self.ids)) - len(self.ids)
        return replace(self, ids=F.pad(self.ids, (0, more)), positions=F.pad(self.positions, (0, more)))

    def tokens_of(self) -> Tensor:
        """Response tokens, float32 [sequences]."""
        ones = torch.ones(len(self.sequences), device=self.sequences.device)
        # Not bincount: a card would be waited for, to tell how many there are.
        return ones.new_zeros(2 * self.pairs).index_add_(0, self.sequences, ones)


def tokens_in(pair: EncodedPair, layout: Layout) -> int:
    """Tokens that a pair takes up in a forward pass (padding aside)."""
    prompts = 1 if layout == "shared" else (len(pair.chosen_ids) > 0) + (len(pair.rejected_ids) > 0)
    return prompts * len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids)


def micro_batches(pairs: Sequence[EncodedPair], layout: Layout, max_tokens: int) -> list[list[int]]:
    """Positions of ``pairs`` grouped so that no group takes more than ``max_tokens`` tokens (padding included).

    Longest first, each into the first group with room. A pair that is longer than the bound is a group of its own.
    """
    sizes = [tokens_in(pair, layout) for pair in pairs]
    if layout == "padded":
        sizes = [2 * _length([pair]) for pair in pairs]
    else:
        max_tokens -= max_tokens % _MULTIPLE  # the row's padding has to fit as well
    groups: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(pairs)), key=lambda i: (-sizes[i], i)):
        cost = [sizes[group[0]] if layout == "padded" else sizes[index] for group in groups]
        fits = next((n for n, size in enumerate(cost) if size <= room[n]), None)
        if fits is None:
            groups.append([index])
            room.append(max_tokens - sizes[index])
        else:
            groups[fits].append(index)
            room[fits] -= cost[fits]
    return groups


def in_order(groups: Sequence[Sequence[int]], found: Sequence[Tensor]) -> Tensor:
    """What was found of each group, [2 * pairs] in turn, as [pairs, 2] in the order of all pairs, on the CPU: one
    transfer from a card, at the end."""
    places = [place for group in groups for place in group]
    result = torch.zeros(len(places), 2)
    if places:
        result[places] = torch.cat(list(found)).view(-1, 2).cpu()
    return result


def collate(pairs: Sequence[EncodedPair], layout: Layout, pad_id: int = 0) -> Batch:
    """The tensors for some pairs, in their order."""
    return _padded(pairs, pad_id) if layout == "padded" else _packed(pairs, layout == "shared", pad_id)


def _sides(pair: EncodedPair) -> Iterator[tuple[int, list[int]]]:
    """The responses that exist: 0 for chosen or 1 for rejected, and its ids."""
    if pair.chosen_ids:
        yield 0, pair.chosen_ids
    if pair.rejected_ids:
        yield 1, pair.rejected_ids


class _Builder:
    """Collects token ids, and what is predicted where."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.rows: list[int] = []
        self.targets: list[int] = []
        self.sequences: list[int] = []
        self.answered: list[int] = []
        self.ends: list[int] = []

    def add(self, ids: Sequence[int], first: int) -> int:
        """Append tokens with positions from ``first`` on; returns where they start."""
        start = len(self.ids)
        self.ids += ids
        self.positions += range(first, first + len(ids))
        return start

    def predict(self, before: int, start: int, ids: Sequence[int], sequence: int) -> None:
        """The response at ``start`` is predicted, its first token at ``before`` (the prompt's last)."""
        if ids:
            self.rows += [before, *range(start, start + len(ids) - 1)]
            self.targets += ids
            self.sequences += [sequence] * len(ids)
            self.answered.append(sequence)
            self.ends.append(start + len(ids) - 1)

    def batch(self, bounds: Sequence[int], segments: Sequence[Segment] | None) -> Batch:
        columns = (self.ids, self.positions, self.rows, self.targets, self.sequences, self.answered, self.ends)
        ids, positions, rows, targets, sequences, answered, ends = (
            torch.tensor(column, dtype=torch.long) for column in columns
        )
        given = None if segments is None else tuple(segments)
        return Batch(ids, positions, rows, targets, sequences, answered, ends, tuple(bounds), given)


def _packed(pairs: Sequence[EncodedPair], shared: bool, pad_id: int) -> Batch:
    builder, segments, bounds = _Builder(), [], [0]
    for number, pair in enumerate(pairs):
        prompt, start, lengths = len(pair.prompt_ids), 0, [0, 0]
        for side, ids in _sides(pair):
            if not shared or not any(lengths):
                start = builder.add(pair.prompt_ids, 0)
                lengths = [0, 0]
            at = builder.add(ids, prompt)
            builder.predict(start + prompt - 1, at, ids, 2 * number + side)
            lengths[1 if any(lengths) else 0] = len(ids)
            if not shared:
                segments.append(Segment(start, prompt, len(ids)))
        if shared:
            segments.append(Segment(start, prompt, *lengths))
        bounds.append(len(builder.rows))
    builder.add([pad_id] * (-len(builder.ids) % _MULTIPLE), 0)
    return builder.batch(bounds, segments)


def _padded(pairs: Sequence[EncodedPair], pad_id: int) -> Batch:
    """All chosen and all rejected sequences are there; where a response is missing, only the prompt. Padding is on the
    right, so that a causal model needs no mask: no token sees one to its right."""
    builder, bounds = _Builder(), [0]
    length = _length(pairs)
    for number, pair in enumerate(pairs):
        prompt = len(pair.prompt_ids)
        for side, ids in enumerate((pair.chosen_ids, pair.rejected_ids)):
            start = builder.add([*pair.prompt_ids, *ids, *[pad_id] * (length - prompt - len(ids))], 0)
            builder.predict(start + prompt - 1, start + prompt, ids, 2 * number + side)
        bounds.append(len(builder.rows))
    batch = builder.batch(bounds, None)
    return replace(batch, ids=batch.ids.view(-1, length), positions=batch.positions.view(-1, length))


def _length(pairs: Sequence[EncodedPair]) -> int:
    """Tokens per sequence of the rectangle for ``pairs``."""
    longest = max(len(p.prompt_ids) + max(len(p.chosen_ids), len(p.rejected_ids)) for p in pairs)
    return longest + -longest % 8
