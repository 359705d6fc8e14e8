from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from stages.base import StageError
from stages.catalog import PAIR
from stages.core.records import JUDGEMENTS, ROLLOUTS, Judgement, Message, PairIds, Rollout
from stages.io.artifact import Artifact
from stages.io.filenames import RECORDS
from stages.io.tables import read_table
from stages.judge.config import PairConfig
from stages.judge.pair import _AT_ONCE
from stages.judge.pairing import Match, accepted, join, match, preference_pair
from tests import artifacts

PROMPT: list[Message] = [{"role": "user", "content": "q"}]


STRATEGIES = ("best_vs_worst", "best_vs_random", "all", "rejection_sampling")
RANDOM = ("best_vs_random", "rejection_sampling")


def rollout(sample: int, text: str, finish: str = "stop", prompt: str = "p") -> Rollout:
    return Rollout(prompt, sample, PROMPT, text, len(text), finish)


def config(strategy: str = "best_vs_worst", **settings: Any) -> PairConfig:
    return PairConfig.model_validate({"strategy": strategy, **settings})


def texts(scored: Sequence[tuple[Rollout, float]], settings: PairConfig) -> list[tuple[str, str]]:
    """The chosen and the rejected text of each pair."""
    return [(pair.chosen.text, pair.rejected.text) for pair in match(scored, settings).pairs]


def many(number: int, seed: int = 0, prompt: str = "p") -> list[tuple[Rollout, float]]:
    """Answers of different lengths with scores some of which are equal, and some copies among them."""
    draw = random.Random(f"{seed}/{prompt}")
    return [
        (
            rollout(n, f"answer {draw.randrange(number)}" + "." * draw.randrange(9), prompt=prompt),
            draw.randrange(40) / 8,
        )
        for n in range(number)
    ]


def scored(*items: tuple[str, float]) -> list[tuple[Rollout, float]]:
    return [(rollout(number, text), score) for number, (text, score) in enumerate(items)]


def test_join_groups_by_prompt_in_the_rollouts_order() -> None:
    rollouts = [rollout(0, "a"), rollout(0, "c", prompt="q"), rollout(1, "b")]
    judgements = [Judgement("q", 0, 0.3), Judgement("p", 1, 0.2), Judgement("p", 0, 0.1)]
    assert join(rollouts, judgements) == {
        "p": [(rollouts[0], 0.1), (rollouts[2], 0.2)],
        "q": [(rollouts[1], 0.3)],
    }


def test_join_refuses_a_rollout_without_judgement() -> None:
    with pytest.raises(ValueError, match="no judgement for sample 1 of prompt p"):
        join([rollout(0, "a"), rollout(1, "b")], [Judgement("p", 0, 1.0)])


def test_join_refuses_two_judgements_of_one_rollout() -> None:
    with pytest.raises(ValueError, match="two judgements for sample 0 of prompt p"):
        join([rollout(0, "a")], [Judgement("p", 0, 1.0), Judgement("p", 0, 1.0)])


@pytest.mark.parametrize("strategy", ["best_vs_worst", "all"])
def test_the_best_is_chosen_and_the_worst_rejected(strategy: str) -> None:
    items = scored(("middle", 0.5), ("worst", -1.0), ("best", 0.9), ("other", 0.1))
    first = match(items, config(strategy)).pairs[0]
    assert first == Match(items[2][0], items[1][0], 1.0)
    pair = preference_pair(first, {})
    assert list(pair.prompt) == PROMPT
    assert list(pair.chosen) == [{"role": "assistant", "content": "best"}]
    assert list(pair.rejected) == [{"role": "assistant", "content": "worst"}]
    assert pair.probability == 1.0
    assert pair.source == "prompt p samples 2, 1"
    assert pair.ids is None


def test_among_equal_scores_the_earlier_sample_counts() -> None:
    items = scored(("low 0", 0.0), ("high 1", 1.0), ("high 2", 1.0), ("low 3", 0.0))
    for given in (items, items[::-1]):
        assert texts(given, config()) == [("high 1", "low 0")]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("items", "settings"),
    [
        pytest.param([], {}, id="nothing"),
        pytest.param([("a", 1.0)], {}, id="one response"),
        pytest.param([("a", 0.5), ("b", 0.5), ("c", 0.5)], {}, id="equal scores"),
        pytest.param([("a", 0.5), ("b", 0.25)], {"min_margin": 0.3}, id="too near"),
        pytest.param([("a", 0.5), ("a", 0.25)], {}, id="the same text"),
        pytest.param([("a b", 0.5), ("a \n b ", 0.25)], {}, id="the same text but for white space"),
        pytest.param([("a", 0.5), (" \n", 0.0)], {}, id="one is empty"),
        pytest.param([("aaaa", 0.5), ("b", 0.0)], {"length_control": {"max_ratio": 3}}, id="too long"),
        pytest.param([("aaaa", 0.75), ("bb", 0.25)], {"length_control": {"penalty": 0.25}}, id="better only by length"),
    ],
)
def test_no_pair(items: Sequence[tuple[str, float]], settings: dict[str, Any], strategy: str) -> None:
    assert match(scored(*items), config(strategy, **settings)).pairs == []


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_margin_or_a_ratio_that_is_just_reached_makes_a_pair(strategy: str) -> None:
    items = scored(("aaa", 0.5), ("b", 0.25))
    assert texts(items, config(strategy, min_margin=0.25)) == [("aaa", "b")]
    assert texts(items, config(strategy, length_control={"max_ratio": 3})) == [("aaa", "b")]


def test_empty_responses_take_no_part() -> None:
    found = match(scored(("", 2.0), ("good", 1.0), ("bad", 0.0), ("  ", -1.0)), config())
    assert [(pair.chosen.text, pair.rejected.text) for pair in found.pairs] == [("good", "bad")]
    assert found.copies == 0


def test_a_response_that_was_cut_off_is_marked() -> None:
    found = match([(rollout(0, "a", "length"), 1.0), (rollout(1, "b", "stop"), 0.0)], config())
    pair = preference_pair(found.pairs[0], {})
    assert not pair.chosen_ended
    assert pair.rejected_ended


def test_of_copies_the_best_counts_and_among_equals_the_earliest() -> None:
    items = scored(("same text", 0.0), ("same  text\n", 0.75), (" same text", 0.75), ("other", 0.25), ("Other", 0.25))
    for given in (items, items[::-1]):
        found = match(given, config("all"))
        assert [(pair.chosen.sample, pair.rejected.sample) for pair in found.pairs] == [(1, 3), (1, 4)]
        assert found.copies == 2


def test_a_copy_counts_at_its_own_place_among_equal_scores() -> None:
    assert texts(scored(("x", 0.5), ("y", 1.0), ("x", 1.0), ("z", 0.0)), config()) == [("y", "z")]


def test_a_copy_of_the_best_answer_that_got_the_worst_score_is_not_its_opposite() -> None:
    assert texts(scored(("a", 1.0), ("b", 0.5), ("a", 0.0)), config()) == [("a", "b")]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("seed", range(5))
def test_what_holds_for_the_pairs_of_every_strategy(strategy: str, seed: int) -> None:
    control = {"penalty": 0.0625, "max_ratio": 1.25}
    accept = {"rejection": {"beta": 4, "samples": 40}} if strategy == "rejection_sampling" else {}
    settings = config(strategy, min_margin=0.5, length_control=control, soft={"temperature": 2}, **accept)
    items = many(64, seed)
    scores = {answer.sample: score - 0.0625 * answer.tokens for answer, score in items}
    found = match(items, settings)
    assert found.pairs
    assert found.copies == 64 - len({" ".join(answer.text.split()) for answer, _ in items}) > 0
    for chosen, rejected, probability in found.pairs:
        margin = scores[chosen.sample] - scores[rejected.sample]
        assert margin >= 0.5
        assert chosen.tokens <= 1.25 * rejected.tokens
        assert chosen.text != rejected.text
        assert probability == pytest.approx(1 / (1 + math.exp(-margin / 2)))
    said = [frozenset((pair.chosen.text, pair.rejected.text)) for pair in found.pairs]
    assert len(set(said)) == len(said)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_order_of_the_answers_changes_no_pair(strategy: str) -> None:
    for seed in range(5):
        items = many(32, seed)
        mixed = random.Random(seed).sample(items, len(items))
        assert match(mixed, config(strategy)) == match(items, config(strategy))


@pytest.mark.parametrize("strategy", RANDOM)
def test_the_random_choices_depend_on_the_seed_and_on_the_prompt(strategy: str) -> None:
    def samples(settings: PairConfig, prompt: str = "p") -> list[tuple[int, int]]:
        items = [(replace(answer, prompt_id=prompt), score) for answer, score in many(64)]
        return [(pair.chosen.sample, pair.rejected.sample) for pair in match(items, settings).pairs]

    assert samples(config(strategy)) == samples(config(strategy))
    assert samples(config(strategy, seed=1)) != samples(config(strategy))
    assert samples(config(strategy), "q") != samples(config(strategy))


def test_the_best_is_paired_with_any_of_the_others_alike() -> None:
    items = scored(("best", 4.0), ("near", 3.5), ("a", 2.0), ("b", 1.0), ("c", 0.0))
    found = Counter(
        pair for seed in range(900) for pair in texts(items, config("best_vs_random", min_margin=1, seed=seed))
    )
    assert set(found) == {("best", "a"), ("best", "b"), ("best", "c")}
    assert min(found.values()) > 240  # 300 each on average; 60 is four standard deviations


def test_all_pairs_are_those_far_enough_apart_and_the_widest_are_taken_first() -> None:
    items = scored(("a", 4.0), ("b", 2.0), ("c", 1.0), ("d", 1.0))
    wide = [("a", "c"), ("a", "d"), ("a", "b"), ("b", "c"), ("b", "d")]
    assert texts(items, config("all")) == wide
    assert texts(items, config("all", min_margin=2)) == wide[:3]
    for most in range(1, 7):
        assert texts(items, config("all", max_pairs=most)) == wide[:most]


def test_all_pairs_of_64_answers() -> None:
    items = [(rollout(n, f"answer {n}"), float(n)) for n in range(64)]
    found = match(items, config("all")).pairs
    assert len(found) == 64 * 63 / 2
    assert {frozenset((p.chosen.sample, p.rejected.sample)) for p in found} == set(
        map(frozenset, combinations(range(64), 2))
    )


def test_a_penalty_for_length_decides_which_answer_is_better() -> None:
    items = scored(("a long answer", 1.0), ("short", 0.75), ("middling", 0.5))
    assert texts(items, config()) == [("a long answer", "middling")]
    assert texts(items, config(length_control={"penalty": 0.125})) == [("short", "a long answer")]


def test_a_shorter_chosen_answer_is_never_too_long() -> None:
    assert texts(scored(("a", 1.0), ("b" * 99, 0.0)), config(length_control={"max_ratio": 1})) == [("a", "b" * 99)]


@pytest.mark.parametrize(
    ("margin", "temperature", "probability"),
    [(1.0, 1.0, 0.731059), (2.0, 4.0, 0.622459), (0.5, 0.125, 0.982014), (1e300, 1e-300, 1.0), (1e-300, 1e300, 0.5)],
)
def test_soft_pairs_follow_bradley_and_terry(margin: float, temperature: float, probability: float) -> None:
    (pair,) = match(scored(("b", 0.0), ("a", margin)), config(soft={"temperature": temperature})).pairs
    assert pair.probability == pytest.approx(probability, abs=1e-6)
    assert preference_pair(pair, {}).probability == pair.probability


def fixed(*numbers: float) -> Any:
    return iter(numbers).__next__


def test_answers_are_accepted_by_how_far_they_are_below_the_best_of_those_left() -> None:
    """With beta 0.5: e^-1 = 0.37 for b and e^-2 = 0.14 for c beside a, then e^-1 again for c beside b."""
    items = scored(("a", 1.0), ("b", 0.5), ("c", 0.0))
    first = accepted(items, 0.5, 2, fixed(0.99, 0.36, 0.5))
    assert [answer.text for answer, _ in first] == ["a", "b"]
    second = accepted(items, 0.5, 3, fixed(0.99, 0.38, 0.13, 0.99))
    assert [answer.text for answer, _ in second] == ["a", "c", "b"]
    third = accepted(items, 0.5, 3, fixed(0.99, 0.38, 0.15, 0.99, 0.36))
    assert [answer.text for answer, _ in third] == ["a", "b", "c"]
    assert accepted(items, 0.5, 1, fixed(0.0, 0.0, 0.0)) == items[:1]


def test_all_answers_are_accepted_in_the_end_if_there_are_too_few() -> None:
    items = scored(("a", 1e9), ("b", 0.5), ("c", -1e9))
    assert accepted(items, 1e-9, 8, random.Random(0).random) == items


def test_a_small_beta_accepts_the_best_and_a_large_one_any() -> None:
    items = [(rollout(n, f"answer {n}"), float(n)) for n in range(64)]
    best = accepted(items, 1e-3, 8, random.Random(0).random)
    assert [answer.sample for answer, _ in best] == [63, 62, 61, 60, 59, 58, 57, 56]
    assert accepted(items, 1e9, 8, random.Random(0).random) == items[:8]


def test_rejection_sampling_pairs_each_accepted_answer_once_and_at_random() -> None:
    items = [(rollout(n, f"answer {n}"), float(n)) for n in range(64)]
    partners = set()
    for seed in range(20):
        found = match(items, config("rejection_sampling", rejection={"beta": 1e-3, "samples": 7}, seed=seed)).pairs
        taken = [sample for pair in found for sample in (pair.chosen.sample, pair.rejected.sample)]
        assert len(found) == 3
        assert len(set(taken)) == 6
        assert set(taken) <= set(range(57, 64))
        assert all(pair.chosen.sample > pair.rejected.sample for pair in found)
        partners |= {pair.rejected.sample for pair in found if pair.chosen.sample == 63}
    assert len(partners) > 3  # not always the one accepted next to it


@pytest.mark.parametrize(
    ("settings", "where", "part"),
    [
        ({"max_pairs": 3}, "max_pairs", "pair.strategy best_vs_worst; leave pair.max_pairs out, or take strategy all"),
        ({"strategy": "best_vs_random", "max_pairs": 3}, "max_pairs", "pair.strategy best_vs_random"),
        ({"strategy": "all", "seed": 3}, "seed", "or take strategy best_vs_random or rejection_sampling"),
        ({"strategy": "all", "rejection": {"beta": 1}}, "rejection", "pair.strategy all"),
        ({"strategy": "all", "max_pairs": 0}, "max_pairs", "greater than 0"),
        ({"strategy": "rejection_sampling", "rejection": {"samples": 1}}, "rejection.samples", "equal to 2"),
        ({"strategy": "rejection_sampling", "rejection": {"beta": 0}}, "rejection.beta", "greater than 0"),
        ({"length_control": {}}, "length_control", "give a penalty above 0, a max_ratio or both"),
        ({"length_control": {"penalty": 0}}, "length_control", "controls nothing"),
        ({"length_control": {"max_ratio": 0.5}}, "length_control.max_ratio", "equal to 1"),
        ({"soft": {"temperature": 0}}, "soft.temperature", "greater than 0"),
        ({"soft": {}}, "soft", "expected either a temperature or votes"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings: dict[str, Any], where: str, part: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PairConfig.model_validate(settings)
    (error,) = caught.value.errors()
    assert ".".join(map(str, error["loc"])) == where
    assert part in error["msg"]


def test_a_default_that_is_written_out_is_no_mistake_and_no_other_identity() -> None:
    written = config(max_pairs=None, seed=0, rejection={"beta": 0.5, "samples": 8}, soft=None, length_control=None)
    assert written.identity() == PairConfig().identity() == {}
    assert config(min_margin=0.1).identity() == {"min_margin": 0.1}


def run_stage(
    folder: Path, scores: dict[str, list[float]], settings: PairConfig, unjudged: Sequence[tuple[str, int]] = ()
) -> Artifact:
    """The pair stage on samples whose texts are their scores, two prompts a part."""
    rollouts, judgements = [], []
    items = list(scores.items())
    for some in (items[at : at + 2] for at in range(0, len(items), 2)):
        own = [rollout(n, f"{s}", prompt=p) for p, values in some for n, s in enumerate(values)]
        more = {"policy": "x", "sampling": "{}", "prompt_ids": [7]}
        rollouts.append([{**asdict(r), **more, "ids": [r.sample, 9]} for r in own])
        judged = [Judgement(r.prompt_id, r.sample, float(r.text)) for r in own]
        judgements.append([asdict(j) for j in judged if (j.prompt_id, j.sample) not in unjudged])
    inputs = {
        "rollouts": artifacts.of_rows(folder, "rollouts", RECORDS, rollouts, ROLLOUTS),
        "judgements": artifacts.of_rows(folder, "judgements", RECORDS, judgements, JUDGEMENTS),
    }
    return artifacts.run(PAIR, folder, settings, inputs)


def test_the_stage_writes_a_pair_a_prompt_and_counts_those_without(tmp_path: Path) -> None:
    scores = {"p": [0.0, 1.0, 0.5], "q": [0.5, 0.5], "r": [0.9, 0.2]}
    made = run_stage(tmp_path, scores, PairConfig())
    assert made.summary == {"pairs": 2, "prompts_without_pair": 1, "copies": 1}
    rows = artifacts.rows(made, RECORDS)
    assert [(r["chosen"][0]["content"], r["rejected"][0]["content"]) for r in rows] == [("1.0", "0.0"), ("0.9", "0.2")]


def test_the_stage_counts_over_all_prompts_and_parts(tmp_path: Path) -> None:
    made = run_stage(tmp_path, {"p": [0.5, 0.5], "q": [0.1, 0.1, 0.1], "r": [1.0, 0.0], "s": [1.0]}, PairConfig())
    assert made.summary == {"pairs": 1, "prompts_without_pair": 3, "copies": 3}


def test_the_stage_says_what_to_do_when_no_prompt_gives_a_pair(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"none of 1 prompts.*pair\.min_margin"):
        run_stage(tmp_path, {"p": [0.1, 0.2]}, PairConfig(min_margin=0.5))


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({}, ["no two answers differ in score, and 1 answers only repeat", "rollout.samples", "finer judge"]),
        ({"length_control": {"max_ratio": 2}}, ["at most 2.0 times as long", "raise pair.length_control.max_ratio"]),
        ({"length_control": {"penalty": 9}}, ["less 9.0 for each token", "lower pair.length_control.penalty"]),
    ],
)
def test_the_stage_names_the_settings_that_leave_no_pair(
    tmp_path: Path, settings: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(StageError) as caught:
        run_stage(tmp_path, {"p": [0.5, 0.5]}, PairConfig.model_validate(settings))
    assert all(part in str(caught.value) for part in parts)
    assert "pair.min_margin" not in str(caught.value)


def test_a_pair_keeps_the_ids_that_were_sampled() -> None:
    two = Match(rollout(1, "high"), rollout(0, "low"), 1.0)
    pair = preference_pair(two, {0: ([1, 2], [0, 9]), 1: ([1, 2], [1, 9])})
    assert pair.ids == PairIds([1, 2], [1, 9], [0, 9])
    assert pair.tools == ""
    assert preference_pair(two._replace(chosen=replace(two.chosen, tools="[]")), {}).tools == "[]"


def test_the_pairs_of_an_answer_share_its_ids() -> None:
    """With 64 answers each is in up to 63 pairs; its ids are not copied for each of them."""
    items = [(rollout(n, f"answer {n}"), float(n)) for n in range(64)]
    ids = {n: ([7], [n, 9]) for n in range(64)}
    pairs = [preference_pair(each, ids) for each in match(items, config("all")).pairs]
    held = {id(side) for pair in pairs if pair.ids for side in pair.ids}
    assert len(held) == 64 + 63  # of the answers, and of the prompt, which the chosen ones have along


def test_the_stage_writes_all_pairs_of_64_answers_in_small_tables(tmp_path: Path) -> None:
    scores = {"p": [float(n) for n in range(64)], "q": [1.0, 1.0], "r": [1.0, 2.0]}
    made = run_stage(tmp_path, scores, config("all", soft={"temperature": 8}))
    assert made.summary == {"pairs": 2016 + 1, "prompts_without_pair": 1, "copies": 1}
    rows = artifacts.rows(made, RECORDS)
    for row in rows[:2016]:
        chosen, rejected = (float(row[side][0]["content"]) for side in ("chosen", "rejected"))
        assert row["ids"] == {"prompt": [7], "chosen": [int(chosen), 9], "rejected": [int(rejected), 9]}
        assert row["probability"] == pytest.approx(1 / (1 + math.exp((rejected - chosen) / 8)))
    first = read_table(made.tables(RECORDS)[0].path)
    assert max(len(batch) for batch in first.to_batches()) <= _AT_ONCE < len(first)


def test_the_parts_order_changes_no_pair(tmp_path: Path) -> None:
    draw = random.Random(0)
    scores = {f"prompt {n}": [draw.random() for _ in range(12)] for n in range(8)}
    settings = config("rejection_sampling", rejection={"samples": 4})
    ordered = run_stage(tmp_path / "a", scores, settings)
    turned = run_stage(tmp_path / "b", dict(reversed(scores.items())), settings)
    found = [sorted(row["source"] for row in artifacts.rows(each, RECORDS)) for each in (ordered, turned)]
    assert found[0] == found[1]
    assert len(found[0]) == 16


def test_an_answer_that_the_judge_has_no_score_for_makes_no_pair(tmp_path: Path) -> None:
    unjudged = [("p", 2)]
    made = run_stage(tmp_path, {"p": [0.0, 1.0, 9.0], "q": [1.0, 1.0]}, PairConfig(), unjudged)
    assert made.summary == {"pairs": 1, "prompts_without_pair": 1, "copies": 1}
    (row,) = artifacts.rows(made, RECORDS)
    assert row["chosen"][0]["content"] == "1.0"
    assert row["ids"] == {"prompt": [7], "chosen": [1, 9], "rejected": [0, 9]}
