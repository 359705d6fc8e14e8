"""Tensors by hand, and how pairs are grouped into micro-batches."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from stages.core.forward.packing import Batch, Layout, collate, micro_batches, tokens_in
from stages.core.forward.segments import Segment
from stages.core.tokens.pair import EncodedPair, mismatched
from tests.memory import encoded, random_pairs

LAYOUTS: tuple[Layout, ...] = ("shared", "packed", "padded")
A = encoded([11, 12], [13], [14, 15])
B = encoded([21], [22, 23, 24], [25])
CHOSEN_ONLY = encoded([31, 32], [33, 34], [])
REJECTED_ONLY = encoded([41, 42, 43], [], [44])


def unpaired() -> list[EncodedPair]:
    """Rows with both responses, with one, and with the other."""
    pairs = random_pairs(9, seed=3)
    for place in (1, 4):
        pairs[place] = replace(pairs[place], chosen_ids=[])
    for place in (2, 8):
        pairs[place] = replace(pairs[place], rejected_ids=[])
    return pairs


def predicted(batch: Batch) -> list[tuple[int, int, int]]:
    """(sequence, row, target) of everything that is predicted."""
    return list(zip(batch.sequences.tolist(), batch.rows.tolist(), batch.targets.tolist(), strict=True))


def test_a_shared_row_by_hand() -> None:
    batch = collate([A, B], "shared", pad_id=9)
    assert batch.ids.tolist() == [11, 12, 13, 14, 15, 21, 22, 23, 24, 25, 9, 9, 9, 9, 9, 9]
    assert batch.positions.tolist() == [0, 1, 2, 2, 3, 0, 1, 2, 3, 1, 0, 1, 2, 3, 4, 5]
    assert predicted(batch) == [
        (0, 1, 13),
        (1, 1, 14), (1, 3, 15),
        (2, 5, 22), (2, 6, 23), (2, 7, 24),
        (3, 5, 25),
    ]  # fmt: skip
    assert batch.bounds == (0, 3, 7)
    assert batch.segments == (Segment(0, 2, 1, 2), Segment(5, 1, 3, 1))


def test_a_packed_row_by_hand() -> None:
    batch = collate([A, B], "packed", pad_id=9)
    assert batch.ids.tolist() == [11, 12, 13, 11, 12, 14, 15, 21, 22, 23, 24, 21, 25, 9, 9, 9]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 0, 1, 2]
    assert predicted(batch) == [
        (0, 1, 13),
        (1, 4, 14), (1, 5, 15),
        (2, 7, 22), (2, 8, 23), (2, 9, 24),
        (3, 11, 25),
    ]  # fmt: skip
    assert batch.bounds == (0, 3, 7)
    assert batch.segments == (Segment(0, 2, 1), Segment(3, 2, 2), Segment(7, 1, 3), Segment(11, 1, 1))


def test_a_padded_rectangle_by_hand() -> None:
    batch = collate([A, B], "padded", pad_id=9)
    assert batch.ids.tolist() == [
        [11, 12, 13, 9, 9, 9, 9, 9],
        [11, 12, 14, 15, 9, 9, 9, 9],
        [21, 22, 23, 24, 9, 9, 9, 9],
        [21, 25, 9, 9, 9, 9, 9, 9],
    ]
    assert batch.positions.tolist() == [list(range(8))] * 4
    assert predicted(batch) == [
        (0, 1, 13),
        (1, 9, 14), (1, 10, 15),
        (2, 16, 22), (2, 17, 23), (2, 18, 24),
        (3, 24, 25),
    ]  # fmt: skip
    assert batch.bounds == (0, 3, 7)
    assert batch.segments is None


def test_rows_with_one_response_by_hand() -> None:
    shared = collate([CHOSEN_ONLY, REJECTED_ONLY], "shared")
    assert shared.ids.tolist() == [31, 32, 33, 34, 41, 42, 43, 44, *[0] * 8]
    assert shared.segments == (Segment(0, 2, 2), Segment(4, 3, 1))
    expected = [(0, 1, 33), (0, 2, 34), (3, 6, 44)]
    assert predicted(shared) == expected
    assert shared.bounds == (0, 2, 3)
    packed = collate([CHOSEN_ONLY, REJECTED_ONLY], "packed")
    assert torch.equal(packed.ids, shared.ids)
    assert predicted(packed) == expected
    assert packed.segments == shared.segments
    padded = collate([CHOSEN_ONLY, REJECTED_ONLY], "padded")
    assert padded.ids[:, :5].tolist() == [
        [31, 32, 33, 34, 0],
        [31, 32, 0, 0, 0],
        [41, 42, 43, 0, 0],
        [41, 42, 43, 44, 0],
    ]
    assert predicted(padded) == [(0, 1, 33), (0, 2, 34), (3, 26, 44)]
    for batch in (shared, packed, padded):
        assert batch.pairs == 2
        assert batch.tokens_of().tolist() == [2, 0, 0, 1]


def test_a_mismatched_answer_is_a_pair_without_a_rejected_response() -> None:
    batch = collate([mismatched(A, B), mismatched(B, REJECTED_ONLY)], "shared")
    assert batch.ids.tolist()[:7] == [11, 12, 22, 23, 24, 21, 44]
    assert [(sequence, target) for sequence, _, target in predicted(batch)] == [(0, 22), (0, 23), (0, 24), (2, 44)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_predicts_a_token_is_the_token_before_it_in_its_own_sequence(layout: Layout) -> None:
    pairs = unpaired()
    batch = collate(pairs, layout)
    ids, positions = batch.ids.flatten().tolist(), batch.positions.flatten().tolist()
    seen: dict[int, list[int]] = {}
    for sequence, row, target in predicted(batch):
        pair = pairs[sequence // 2]
        response = pair.rejected_ids if sequence % 2 else pair.chosen_ids
        done = seen.setdefault(sequence, [])
        assert ids[row] == [*pair.prompt_ids, *response][len(pair.prompt_ids) + len(done) - 1]
        assert positions[row] == len(pair.prompt_ids) + len(done) - 1
        done.append(target)
    responses = {
        2 * n + side: ids for n, p in enumerate(pairs) for side, ids in ((0, p.chosen_ids), (1, p.rejected_ids))
    }
    assert seen == {sequence: ids for sequence, ids in responses.items() if ids}
    assert batch.bounds == tuple(
        sum(len(p.chosen_ids) + len(p.rejected_ids) for p in pairs[:n]) for n in range(len(pairs) + 1)
    )


@pytest.mark.parametrize("layout", ["shared", "packed"])
def test_segments_lie_one_after_another_and_cover_all_but_the_padding(layout: Layout) -> None:
    pairs = unpaired()
    batch = collate(pairs, layout)
    assert batch.segments is not None
    at = 0
    for segment in batch.segments:
        assert segment.start == at
        at += segment.length
    assert at == sum(tokens_in(pair, layout) for pair in pairs)
    assert len(batch.ids) == at + -at % 16


@pytest.mark.parametrize("layout", ["shared", "packed"])
def test_rows_are_filled_up_to_a_multiple_of_sixteen(layout: Layout) -> None:
    sizes = {n: len(collate([encoded([1], [2] * n, [])], layout).ids) for n in range(1, 40)}
    assert sizes == {n: 16 * (1 + n // 16) for n in range(1, 40)}


def test_padding_is_to_the_next_multiple_of_eight() -> None:
    lengths = [collate([encoded([1], [2] * n, [3])], "padded").ids.shape[1] for n in range(1, 18)]
    assert all(length % 8 == 0 for length in lengths)
    assert lengths[6] == 8  # 1 + 7 tokens fit exactly
    assert lengths[7] == 16
    assert all(b - a in (0, 8) for a, b in pairwise(lengths))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_tensors_are_int64_and_move_together(layout: Layout) -> None:
    batch = collate([A, B], layout)
    names = ("ids", "positions", "rows", "targets", "sequences")
    assert all(getattr(batch, name).dtype == torch.int64 for name in names)
    assert batch.to(torch.device("cpu")) is batch
    moved = batch.to(torch.device("meta"))
    assert all(getattr(moved, name).device.type == "meta" for name in names)
    assert (moved.bounds, moved.segments) == (batch.bounds, batch.segments)


def test_tokens_of_a_pair_by_hand() -> None:
    """A: 2 prompt, 1 chosen and 2 rejected tokens; with one response the prompt is there once in any layout."""
    assert [tokens_in(A, layout) for layout in LAYOUTS] == [5, 7, 7]
    assert [tokens_in(REJECTED_ONLY, layout) for layout in LAYOUTS] == [4, 4, 4]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bound", [1, 64, 200, 1000, 10**6])
def test_micro_batches_hold_every_pair_once_within_the_bound(layout: Layout, bound: int) -> None:
    pairs = [*random_pairs(50, longest=30), *unpaired()]
    groups = micro_batches(pairs, layout, bound)
    assert groups == micro_batches(pairs, layout, bound)
    assert Counter(index for group in groups for index in group) == Counter(range(len(pairs)))
    for group in groups:
        batch = collate([pairs[index] for index in group], layout)
        assert len(group) == 1 or batch.ids.numel() <= bound


def test_micro_batches_are_as_large_as_the_bound_allows() -> None:
    pairs = [encoded([1] * 8, [2] * 4, [3] * 4)] * 6
    assert micro_batches(pairs, "shared", 48) == [[0, 1, 2], [3, 4, 5]]
    assert micro_batches(pairs, "shared", 47) == [[0, 1], [2, 3], [4, 5]]
    assert micro_batches(pairs, "packed", 48) == [[0, 1], [2, 3], [4, 5]]
    assert micro_batches(pairs, "padded", 64) == [[0, 1], [2, 3], [4, 5]]  # 12 tokens per sequence, 16 with padding
    assert micro_batches(pairs, "padded", 63) == [[n] for n in range(6)]
    assert micro_batches([], "shared", 60) == []


def test_a_short_pair_fills_the_room_that_a_long_one_left() -> None:
    lengths = (30, 12, 26, 8, 20)
    pairs = [encoded([1], [2] * (length - 2), [3]) for length in lengths]
    assert micro_batches(pairs, "shared", 48) == [[0, 1], [2, 4], [3]]


def test_padded_pairs_of_similar_length_go_together() -> None:
    pairs = [encoded([1], [2] * (length - 1), [3]) for length in (100, 1 + 1, 99, 2 + 1, 98, 3 + 1)]
    groups = micro_batches(pairs, "padded", 624)
    assert sorted(map(sorted, groups)) == [[0, 2, 4], [1, 3, 5]]
