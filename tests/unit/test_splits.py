from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.core.records import id_numbers, prompt_key
from stages.data.hashing import held_out


def keys(*texts: str) -> NDArray[np.uint64]:
    return id_numbers(pa.chunked_array([[prompt_key([{"role": "user", "content": text}]) for text in texts]]))


MANY = keys(*(f"Question {n}?" for n in range(2000)))


def test_about_the_share_of_the_prompts_is_held_out() -> None:
    for share in (0.05, 0.3, 0.9):
        assert abs(held_out(MANY, share).mean() - share) < 3 * (share * (1 - share) / len(MANY)) ** 0.5
    assert not held_out(MANY, 0.0).any()


def test_a_larger_share_holds_out_the_same_prompts_and_more() -> None:
    before = held_out(MANY, 0.0)
    for share in (0.01, 0.1, 0.11, 0.5, 0.999):
        now = held_out(MANY, share)
        assert now[before].all()
        assert now.sum() > before.sum()
        before = now


def test_one_prompt_is_on_one_side_however_it_is_written() -> None:
    for n in range(200):
        sides = held_out(keys(f"Question {n}?", f"  question\n{n}? ", f"QUESTION {n}?"), 0.5)
        assert len(set(sides.tolist())) == 1


def test_other_prompts_move_none() -> None:
    alone = np.concatenate([held_out(MANY[n : n + 1], 0.2) for n in range(len(MANY))])
    np.testing.assert_array_equal(alone, held_out(MANY, 0.2))


def test_the_split_is_the_same_for_ever() -> None:
    """What is held out in one run must not be trained on in the next."""
    numbers = np.array([0, 2**63 - 1, 2**63, 2**64 - 1], np.uint64)
    assert held_out(numbers, 0.5).tolist() == [True, True, False, False]
    assert held_out(numbers, 1 - 2**-53).tolist() == [True, True, True, False]
