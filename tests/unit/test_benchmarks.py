"""The benchmarks' own arithmetic; nothing here measures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from benchmarks import (
    limit,
    prepare_side,
    prepare_vs_datasets,
    rondo_side,
    step_in_run,
    sweep_trl_side,
    sweep_vs_separate,
    train_vs_trl,
)
from benchmarks.pairs import LENGTHS, pair
from benchmarks.rondo_side import in_file_order
from benchmarks.setup import split
from pipelines.spec import load
from stages.train.batching import batch_indices
from stages.train.config import TrainConfig
from tests import tiny

SHAPE = limit.Shape(width=4, inner=8, layers=2, vocabulary=10, query=4, key=2)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_a_pair_depends_on_its_number_alone(lengths: str) -> None:
    assert pair(3, lengths) == pair(3, lengths)
    assert len({pair(index, lengths)["prompt"] for index in range(50)}) == 50
    longest = LENGTHS[lengths]["prompt"][3]
    assert all(len(pair(index, lengths)["prompt"].split()) <= longest for index in range(50))


def test_long_pairs_have_long_prompts_and_short_answers() -> None:
    row = pair(0, "long")
    assert len(row["prompt"].split()) == 640
    assert len(row["chosen"].split()) == len(row["rejected"].split()) == 80


def test_the_weights_of_a_model_are_counted() -> None:
    assert SHAPE.body == 2 * ((4 + 2 + 2 + 4) * 4 + 3 * 4 * 8)
    assert SHAPE.head == 40


def test_the_operations_of_a_pair_are_counted() -> None:
    """Prompt 3, answers 2 and 1: 6 tokens, 3 of them answered; 21 causal pairs of tokens less 2 between the answers."""
    products = 2 * (SHAPE.body * 6 + SHAPE.head * 3)
    attention = 2 * 2 * SHAPE.query * SHAPE.layers * 19
    assert limit.operations(SHAPE, 3, 2, 1, frozen=False) == 3 * products + 3 * attention
    assert limit.operations(SHAPE, 3, 2, 1, frozen=True) == 2 * products + 3 * attention


def test_the_ideal_is_the_rate_over_the_mean_of_the_operations() -> None:
    lengths = [(3, 2, 1), (5, 4, 4)]
    total = sum(limit.operations(SHAPE, *each, frozen=False) for each in lengths)
    assert limit.ideal(SHAPE, lengths, 1e6)["full"] == pytest.approx(2e6 / total)


def test_both_sides_see_the_pairs_in_the_files_order() -> None:
    order = in_file_order(10, seed=0)
    seen = [order[index] for step in range(3) for index in batch_indices(step, 10, 4, 1, 0)]
    assert seen == list(range(10))


def test_rates_and_ratios_are_taken_from_the_marks() -> None:
    settings = {"pairs": 8, "batch_size": 4}
    slow = {"marks": [0.0, 6.0, 8.0], "losses": [0.7, 0.6], "peak_memory_gib": 4.0, "reference_seconds": 1.0}
    fast = {**slow, "marks": [0.0, 1.0, 2.0], "peak_memory_gib": 1.0, "response_tokens": 80}
    assert train_vs_trl.rate(slow, settings) == 1.0
    assert train_vs_trl.rate(slow, settings, skip=1) == 2.0
    result = train_vs_trl.compare({"trl": [slow], "rondo": [fast]}, settings)
    assert (result["speed_ratio"], result["speed_ratio_steady"], result["memory_ratio"]) == (4.0, 2.0, 0.25)
    assert result["rondo"]["response_tokens_per_second"] == 40.0


def test_steps_inside_a_run_are_those_of_the_training_alone(tmp_path: Path) -> None:
    settings = {"mode": "lora", "precision": "bf16", "batch_size": 4, "micro_batch_tokens": 99, "model": str(tmp_path)}
    tiny.save(tmp_path)
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair(0)))
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(step_in_run.specification(settings)))
    spec = load.load(str(tmp_path / "spec.yaml")).spec
    assert spec.train == TrainConfig.model_validate(rondo_side.configuration(settings))
    assert spec.resources.train.micro_batch_tokens == 99
    rows = [{"tokens": 9, "seconds": 9}, {"tokens": 40, "seconds": 1}, {"tokens": 20, "seconds": 2}]
    assert step_in_run.rate(rows) == 20


def test_losses_are_compared_step_by_step() -> None:
    runs = {"trl": [{"losses": [0.5, 0.25]}], "rondo": [{"losses": [0.5, 0.375]}]}
    assert train_vs_trl.agreement(runs)["largest_difference"] == 0.125


def test_ids_are_the_same_whatever_a_template_writes_behind_the_end() -> None:
    rows = [[[1, 2], [3, 9], [4, 9]], [[5], [9, 6, 9], [7]]]
    longer = [[[1, 2], [3, 9, 8], [4, 9]], [[5], [9, 6, 9, 8, 8], [7]]]
    assert prepare_side.digest(rows, end=9) == prepare_side.digest(longer, end=9)
    assert prepare_side.digest(rows, end=9) != prepare_side.digest([rows[1], rows[0]], end=9)
    assert prepare_side.digest(rows, end=9) != prepare_side.digest([[[1], [2, 3, 9], [4, 9]], rows[1]], end=9)


def test_rates_of_preparing_are_compared_round_by_round() -> None:
    def runs(*seconds: float, digest: str = "same") -> list[dict[str, object]]:
        return [{"seconds": each, "cpu_seconds": 2 * each, "digest": digest} for each in seconds]

    found = prepare_vs_datasets.compare({"rondo_api": runs(1, 2, 4), "datasets": runs(4, 4, 4)}, rows=8)
    assert found["rows_per_second"]["median"] == {"rondo_api": 4, "datasets": 2}
    assert found["rows_per_second"]["ratios"] == {"rondo_api_over_datasets": 2.0}
    assert found["rows_per_second"]["ratios_each"] == {"rondo_api_over_datasets": [4.0, 2.0, 1.0]}
    assert found["rows_per_cpu_second"]["median"] == {"rondo_api": 2, "datasets": 1}
    with pytest.raises(SystemExit, match="do not give the same ids"):
        prepare_vs_datasets.compare({"rondo_api": runs(1), "trl": runs(1, digest="other")}, rows=8)


def test_the_common_beginning_is_counted() -> None:
    assert [prepare_side.common(a, [1, 2, 3]) for a in ([1, 2, 4], [1, 2], [], [1, 2, 3])] == [2, 2, 0, 3]


def test_pairs_are_divided_by_their_prompts(tmp_path: Path) -> None:
    rows = [pair(index) for index in range(40)] + [{**pair(0), "chosen": "another answer"}]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found = split(file, 0.5, tmp_path)
    sides = {name: [json.loads(line) for line in Path(path).read_text().splitlines()] for name, path in found.items()}
    assert len(sides["train"]) + len(sides["heldout"]) == 41
    prompts = {name: {row["prompt"][0]["content"] for row in side} for name, side in sides.items()}
    assert len(prompts["train"] | prompts["heldout"]) == 40
    assert not prompts["train"] & prompts["heldout"]
    row = sides["train"][0]
    longer = max(len(row[name][0]["content"]) for name in ("chosen", "rejected"))
    assert row["chosen"][0]["role"] == "assistant"
    assert row["length"] == len(row["prompt"][0]["content"]) + longer


def test_a_point_of_a_sweep_becomes_a_whole_configuration() -> None:
    found = sweep_vs_separate.configuration({"beta": 0.3, "batch_size": 16, "lora.rank": 4})
    assert (found["beta"], found["batch_size"], found["lora"]["rank"], found["lora"]["alpha"]) == (0.3, 16, 4, 32)
    assert (found["warmup"], found["schedule"], found["precision"]) == (0.1, "linear", "bf16")
    assert sweep_vs_separate.configuration({})["lora"]["rank"] == 8


def test_the_time_of_runs_left_out_is_that_of_the_later_ones() -> None:
    assert sweep_vs_separate.scaled([10, 4, 6], 5) == 30
    assert sweep_vs_separate.scaled([10, 4, 6], 3) == 20


def test_a_trial_that_was_not_trained_to_the_end_is_no_point() -> None:
    done = {"number": 1, "status": "done", "point": {"beta": 0.1}, "scores": {"reward_accuracy": 0.5}}
    assert sweep_vs_separate.points({"trials": [done]}) == [({"beta": 0.1}, 0.5)]
    with pytest.raises(SystemExit, match="2: failed"):
        sweep_vs_separate.points({"trials": [done, {**done, "number": 2, "status": "failed"}]})


def test_both_sides_of_a_sweep_are_compared() -> None:
    rondo = {"none": {"seconds": 50, "peak_memory_gib": 3, "peak_private_memory_gib": 2}}
    trl = {"inside": {"seconds": 200, "peak_memory_gib": 6, "peak_private_memory_gib": 5}}
    assert sweep_vs_separate.compare(rondo, trl) == {
        "speed_ratios": {"none_inside": 4.0},
        "memory_ratios": {"none_inside": 0.5},
        "private_memory_ratios": {"none_inside": 0.4},
    }
    rows = sweep_vs_separate.each([({"beta": 1}, 0.5), ({"beta": 2}, 0.75)], {"inside": [{"reward_accuracy": 0.6}]})
    assert [row["inside"] for row in rows] == [0.6, None]


def test_batches_of_an_evaluation_have_one_size() -> None:
    assert [sweep_trl_side.evaluated_together(count) for count in (24, 21, 25, 23)] == [2, 3, 5, 1]
