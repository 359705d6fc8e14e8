from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from stages.base import StageError
from stages.catalog import PAIR
from stages.core.records import JUDGEMENTS, ROLLOUTS, Judgement, Message, PairIds, Rollout
from stages.io.artifact import Artifact
from stages.io.filenames import RECORDS
from stages.judge.config import PairConfig
from stages.judge.pairing import best_vs_worst, join
from tests import artifacts

PROMPT: list[Message] = [{"role": "user", "content": "q"}]


def rollout(sample: int, text: str, finish: str = "stop", prompt: str = "p") -> Rollout:
    return Rollout(prompt, sample, PROMPT, text, len(text), finish)


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


def test_the_best_is_chosen_and_the_worst_rejected() -> None:
    pair = best_vs_worst(scored(("middle", 0.5), ("worst", -1.0), ("best", 0.9), ("other", 0.1)))
    assert pair is not None
    assert list(pair.prompt) == PROMPT
    assert list(pair.chosen) == [{"role": "assistant", "content": "best"}]
    assert list(pair.rejected) == [{"role": "assistant", "content": "worst"}]
    assert pair.probability == 1.0


def test_among_equal_scores_the_earlier_sample_counts() -> None:
    pair = best_vs_worst(scored(("low 0", 0.0), ("high 1", 1.0), ("high 2", 1.0), ("low 3", 0.0)))
    assert pair is not None
    assert (pair.chosen[0]["content"], pair.rejected[0]["content"]) == ("high 1", "low 0")
    assert all(number in pair.source for number in ("1", "0"))


@pytest.mark.parametrize(
    ("items", "min_margin"),
    [
        pytest.param([], 0.0, id="nothing"),
        pytest.param([("a", 1.0)], 0.0, id="one response"),
        pytest.param([("a", 0.5), ("b", 0.5), ("c", 0.5)], 0.0, id="equal scores"),
        pytest.param([("a", 0.5), ("b", 0.25)], 0.3, id="too near"),
        pytest.param([("a", 0.5), ("a", 0.25)], 0.0, id="the same text"),
        pytest.param([("a", 0.5), (" \n", 0.0)], 0.0, id="one is empty"),
    ],
)
def test_no_pair(items: Sequence[tuple[str, float]], min_margin: float) -> None:
    assert best_vs_worst(scored(*items), min_margin) is None


def test_a_margin_that_is_just_reached_makes_a_pair() -> None:
    assert best_vs_worst(scored(("a", 0.5), ("b", 0.25)), min_margin=0.25) is not None


def test_empty_responses_take_no_part() -> None:
    pair = best_vs_worst(scored(("", 2.0), ("good", 1.0), ("bad", 0.0), ("  ", -1.0)))
    assert pair is not None
    assert (pair.chosen[0]["content"], pair.rejected[0]["content"]) == ("good", "bad")


def test_a_response_that_was_cut_off_is_marked() -> None:
    pair = best_vs_worst([(rollout(0, "a", "length"), 1.0), (rollout(1, "b", "stop"), 0.0)])
    assert pair is not None
    assert not pair.chosen_ended
    assert pair.rejected_ended


def run_stage(
    folder: Path, scores: dict[str, list[float]], config: PairConfig, unjudged: Sequence[tuple[str, int]] = ()
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
    return artifacts.run(PAIR, folder, config, inputs)


def test_the_stage_writes_a_pair_a_prompt_and_counts_those_without(tmp_path: Path) -> None:
    scores = {"p": [0.0, 1.0, 0.5], "q": [0.5, 0.5], "r": [0.9, 0.2]}
    made = run_stage(tmp_path, scores, PairConfig())
    assert made.summary == {"pairs": 2, "prompts_without_pair": 1}
    rows = artifacts.rows(made, RECORDS)
    assert [(r["chosen"][0]["content"], r["rejected"][0]["content"]) for r in rows] == [("1.0", "0.0"), ("0.9", "0.2")]


def test_the_stage_says_what_to_do_when_no_prompt_gives_a_pair(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"none of 1 prompts.*pair\.min_margin"):
        run_stage(tmp_path, {"p": [0.1, 0.2]}, PairConfig(min_margin=0.5))


def test_a_pair_keeps_the_ids_that_were_sampled() -> None:
    rollouts = [replace(rollout(n, text), prompt_ids=[1, 2], ids=[n, 9]) for n, text in ((0, "low"), (1, "high"))]
    pair = best_vs_worst([(rollouts[0], 0.0), (rollouts[1], 1.0)])
    assert pair is not None
    assert pair.ids == PairIds([1, 2], [1, 9], [0, 9])
    assert pair.tools == ""
    tools = [(replace(each, tools="[]"), score) for each, score in ((rollouts[0], 0.0), (rollouts[1], 1.0))]
    assert getattr(best_vs_worst(tools), "tools", None) == "[]"


def test_an_answer_that_the_judge_has_no_score_for_makes_no_pair(tmp_path: Path) -> None:
    unjudged = [("p", 2)]
    made = run_stage(tmp_path, {"p": [0.0, 1.0, 9.0], "q": [1.0, 1.0]}, PairConfig(), unjudged)
    assert made.summary == {"pairs": 1, "prompts_without_pair": 1}
    (row,) = artifacts.rows(made, RECORDS)
    assert row["chosen"][0]["content"] == "1.0"
    assert row["ids"] == {"prompt": [7], "chosen": [1, 9], "rejected": [0, 9]}
