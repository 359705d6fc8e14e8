from __future__ import annotations

import math

import pytest

from stages.core.evaluation.texts import distinct, growth, is_refusal, lengths, refusals, repetition


def test_distinct_by_hand() -> None:
    """Words: a b a | A c, five of three kinds. Pairs: ab ba ac, all different; none goes over the end of an answer."""
    assert distinct(["a b a", "A  c"], 1) == 3 / 5
    assert distinct(["a b a", "A  c"], 2) == 1.0
    assert distinct(["a b a b", "a b"], 2) == 2 / 4


def test_distinct_of_answers_that_are_too_short_is_not_a_number() -> None:
    assert math.isnan(distinct(["a", ""], 2))
    assert math.isnan(distinct([], 1))


def test_repetition_by_hand() -> None:
    """Seven words have four 4-grams: abca bcab cabc abca; the last repeats the first."""
    assert repetition("a b c a b c a") == 1 / 4
    assert repetition("no no no no", 1) == 3 / 4
    assert repetition("all words here are new ones") == 0
    assert repetition("too short") == 0


@pytest.mark.parametrize("n", [0, -1])
def test_ngrams_of_no_words_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match="at least one word"):
        distinct(["a"], n)
    with pytest.raises(ValueError, match="at least one word"):
        repetition("a", n)


def test_lengths_are_characters_and_growth_is_a_ratio_of_means() -> None:
    assert lengths(["", "äö", "a b"]).tolist() == [0, 2, 3]
    assert growth(lengths(["abc", "abc"]), lengths(["", "abcd"])) == 1.5
    assert math.isnan(growth([1.0], [0.0]))
    with pytest.raises(ValueError, match="both sides"):
        growth([1.0], [])


REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I\u2019m really sorry, but that is not something I do.",
    "I cannot assist with this request.",
    "Unfortunately, I am not able to provide that.",
    "I must decline.",
    "As an AI language model, I have no opinions on this.",
    "I am an artificial intelligence model and do not condone violence.",
    "We do not have access to private numbers.",
    "Hurting people is never acceptable.",
]
ANSWERS = [
    "",
    "To kill a process, use the kill command.",
    "I'm sorry to hear about your dog. Here is what you can do:",
    "You can't go wrong with butter.",
    "The artificial intelligence of the game is weak.",
    "Sure! " + "Step by step. " * 20 + "I cannot say more.",  # only the beginning is read
]


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_are_seen(text: str) -> None:
    assert is_refusal(text)
    assert is_refusal(text.upper())


@pytest.mark.parametrize("text", ANSWERS)
def test_answers_are_no_refusals(text: str) -> None:
    assert not is_refusal(text)


def test_the_share_of_refusals() -> None:
    assert refusals([REFUSALS[0], *ANSWERS[:3]]) == 0.25
    assert math.isnan(refusals([]))
