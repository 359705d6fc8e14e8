from __future__ import annotations

import numpy as np
import pytest

from stages.core.evaluation.kl import divergence


def test_by_hand() -> None:
    """k1 of the answers: 1, 3 and -1. Prompt a: mean 2 over 5 tokens; prompt b: -1 over 10. Means 0.5 and 7.5."""
    found = divergence([-4.0, -5.0, -9.0], [-5.0, -8.0, -8.0], [4, 6, 10], ["a", "a", "b"], resamples=50)
    assert found.sequence.mean == 0.5
    assert found.token.mean == pytest.approx(0.5 / 7.5)
    assert found.negative == pytest.approx(1 / 3)


def normal(shift: float, answers: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-densities under N(shift, 1) and N(0, 1) of draws of the first; their KL is shift^2 / 2."""
    x = np.random.default_rng(seed).normal(shift, 1, answers)
    return -0.5 * (x - shift) ** 2, -0.5 * x**2


def test_the_estimate_is_the_divergence_of_two_normals() -> None:
    ours, theirs = normal(1.0, 4000, seed=0)
    found = divergence(ours, theirs, np.full(4000, 2), list(range(4000)), resamples=500)
    assert found.sequence.low < 0.5 < found.sequence.high
    assert found.sequence.high - found.sequence.low == pytest.approx(2 * 1.96 / np.sqrt(4000), rel=0.15)
    assert found.token.mean == pytest.approx(found.sequence.mean / 2)


def test_answers_of_a_prompt_are_drawn_together() -> None:
    """Ten equal answers of a prompt say no more than one of them."""
    ours, theirs = normal(0.5, 50, seed=1)
    once = divergence(ours, theirs, np.ones(50), list(range(50)), seed=2)
    often = divergence(*(np.repeat(x, 10) for x in (ours, theirs, np.ones(50))), np.repeat(np.arange(50), 10), seed=2)
    assert (often.sequence.low, often.sequence.high) == pytest.approx((once.sequence.low, once.sequence.high))


def test_a_policy_that_is_its_reference_has_none() -> None:
    found = divergence([-3.0, -1.0], [-3.0, -1.0], [1, 1], ["a", "b"])
    assert (found.sequence.low, found.sequence.high, found.token.mean, found.negative) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("ours", "theirs", "tokens", "prompts", "message"),
    [
        ([], [], [], [], "at least one"),
        ([-1.0], [-1.0, -2.0], [1], ["a"], "same answers"),
        ([-1.0], [-1.0], [1], ["a", "b"], "same answers"),
        ([-1.0], [float("-inf")], [1], ["a"], "finite"),
        ([-1.0], [-1.0], [0], ["a"], "at least one token"),
    ],
)
def test_what_is_no_sample_is_refused(
    ours: list[float], theirs: list[float], tokens: list[int], prompts: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        divergence(ours, theirs, tokens, prompts)
