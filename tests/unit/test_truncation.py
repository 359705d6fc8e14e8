from __future__ import annotations

import itertools

import pytest

from stages.core.errors import RowError
from stages.core.tokens.truncation import truncated
from tests.memory import encoded

PAIR = encoded([1, 2, 3, 4], [11, 12, 13, 14, 15, 99], [21, 22, 99])
"""4 prompt tokens, responses of 6 and 3 with an end token: 10 tokens at most."""


@pytest.mark.parametrize("policy", ["drop", "keep_start", "keep_end"])
def test_a_pair_that_fits_is_left_as_it_is(policy: str) -> None:
    assert truncated(PAIR, 10, policy) == (PAIR, False, False)


def test_drop_refuses_a_longer_pair() -> None:
    with pytest.raises(RowError, match=r"longer than prepare\.max_length 9"):
        truncated(PAIR, 9, "drop")


def test_keep_end_cuts_the_prompts_beginning_for_both_sides() -> None:
    cut = truncated(PAIR, 8, "keep_end")
    assert (cut.prompt, cut.response) == (True, False)
    assert cut.pair.prompt_ids == [3, 4]
    assert (cut.pair.chosen_ids, cut.pair.rejected_ids) == (PAIR.chosen_ids, PAIR.rejected_ids)


def test_keep_end_keeps_one_prompt_token_and_cuts_responses_that_leave_no_room() -> None:
    cut = truncated(PAIR, 5, "keep_end")
    assert (cut.prompt, cut.response) == (True, True)
    assert cut.pair.prompt_ids == [4]
    assert cut.pair.chosen_ids == [11, 12, 13, 14]
    assert cut.pair.rejected_ids == [21, 22, 99]  # fits, and has ended


def test_keep_start_cuts_responses_which_lose_their_end() -> None:
    cut = truncated(PAIR, 6, "keep_start")
    assert (cut.prompt, cut.response) == (False, True)
    assert cut.pair.prompt_ids == [1, 2, 3, 4]
    assert (cut.pair.chosen_ids, cut.pair.rejected_ids) == ([11, 12], [21, 22])


@pytest.mark.parametrize("length", [3, 4])
def test_keep_start_refuses_a_response_that_would_be_gone(length: int) -> None:
    with pytest.raises(RowError, match="nothing of a response is left"):
        truncated(PAIR, length, "keep_start")


def test_responses_that_are_the_same_once_cut_are_refused() -> None:
    pair = encoded([1], [5, 6, 7], [5, 6, 8, 9])
    with pytest.raises(RowError, match="the same as chosen once cut"):
        truncated(pair, 3, "keep_start")
    assert truncated(pair, 4, "keep_start").pair.rejected_ids == [5, 6, 8]


def test_a_single_answer_is_cut_like_a_pair() -> None:
    cut = truncated(encoded([1, 2, 3], [], [7, 8, 9]), 4, "keep_end")
    assert (cut.pair.prompt_ids, cut.pair.chosen_ids, cut.pair.rejected_ids) == ([3], [], [7, 8, 9])


def test_whatever_is_cut_fits_and_is_a_part_of_the_pair() -> None:
    for prompt, chosen, rejected, length in itertools.product(range(1, 6), range(0, 6), range(1, 6), range(1, 11)):
        pair = encoded(range(prompt), range(10, 10 + chosen), range(20, 20 + rejected))
        for policy in ("keep_start", "keep_end"):
            try:
                cut = truncated(pair, length, policy).pair
            except RowError:
                assert length <= (prompt if policy == "keep_start" else 1)
                continue
            longest = max(len(cut.chosen_ids), len(cut.rejected_ids))
            assert len(cut.prompt_ids) + longest == min(length, prompt + max(chosen, rejected))
            assert cut.prompt_ids == pair.prompt_ids[prompt - len(cut.prompt_ids) :]
            for ids, whole in ((cut.chosen_ids, pair.chosen_ids), (cut.rejected_ids, pair.rejected_ids)):
                assert ids == whole[: len(ids)]
                assert bool(ids) == bool(whole)
