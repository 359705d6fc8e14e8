"""The arithmetic of benchmarks.frontier and what it draws; nothing here runs a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import frontier, frontier_plot
from pipelines.plan.rounds import plan
from pipelines.spec.load import load

ROWS = [
    {"prompt_id": "a", "answers": {"policy": [{"score": 0.5}, {"score": 1.0}], "base": [{"score": 0.25}]}},
    {"prompt_id": "b", "answers": {"policy": [{"score": 0.25}, {}], "base": [{"score": -0.25}]}},
    {"prompt_id": "c", "answers": {"policy": [{}], "base": [{"score": 0.75}]}},
]


def document(shards: str = "s", seconds: float = 2.0) -> dict[str, Any]:
    """A run's, as far as it is looked at."""
    interval = {"mean": 3.0, "low": 2.0, "high": 5.0}
    round_ = {
        "round": 1, "pairs": 80, "loss": 0.5, "reward_accuracy": 0.75, "win_rate": {"mean": 0.5},
        "divergence": {**interval, "per_token": {"mean": 0.1}, "negative": 0.0},
        "answers": {"policy": {"tokens": 30.0, "distinct_2": 0.5, "repetition": 0.0, "refusals": 0.0}},
    }  # fmt: skip
    steps = {"round-1/prepare": shards, "base/heldout-rollout": "r", "round-1/evaluate": "e"}
    return {
        "steps": [{"key": key, "fingerprint": found, "seconds": seconds} for key, found in steps.items()],
        "rounds": [round_],
    }


def at(kl: float, score: float, beta: float = 1.0) -> dict[str, Any]:
    return {
        "beta": beta, "kl": {"mean": kl, "low": kl / 2, "high": kl * 4},
        "score": {"mean": score, "low": score - 0.25, "high": score + 0.5},
    }  # fmt: skip


def test_a_point_has_the_runs_kl_and_the_mean_score_over_prompts() -> None:
    found = frontier.point(0.1, document(), ROWS)
    assert found["kl"] == {"mean": 3.0, "low": 2.0, "high": 5.0}
    assert found["score"]["mean"] == (0.75 + 0.25) / 2
    assert found["score"]["low"] == 0.25
    assert found["score"]["high"] == 0.75
    assert found["gain"] == {"mean": 0.5, "low": 0.5, "high": 0.5}  # of a and b; c has no judged answer of the policy


def test_the_base_model_stands_at_no_kl() -> None:
    found = frontier.base_point(ROWS)
    assert found["kl"]["mean"] == 0.0
    assert found["score"]["mean"] == 0.25


def test_the_shape_is_that_of_the_means_along_falling_beta() -> None:
    base = at(0.0, 0.25)
    near, far = at(1.0, 0.5, beta=0.3), at(2.0, 0.75, beta=0.1)
    assert frontier.shape(base, [far, near]) == {"kl_rises_as_beta_falls": True, "score_rises_as_beta_falls": True}
    worse = at(3.0, 0.625, beta=0.03)
    assert frontier.shape(base, [far, near, worse]) == {
        "kl_rises_as_beta_falls": True,
        "score_rises_as_beta_falls": False,
    }


def test_points_of_different_pairs_are_refused() -> None:
    frontier.same_pairs([document(), document()])
    with pytest.raises(SystemExit, match="round-1/prepare differs"):
        frontier.same_pairs([document(), document(shards="t")])


def test_the_seconds_of_a_shared_step_count_once() -> None:
    assert frontier.step_seconds([document(), document(shards="t")]) == 8.0


def test_the_figure_shows_every_point_with_its_interval() -> None:
    report = {
        "base": at(0.0, 0.25),
        "series": {"rondo": [at(2.0, 0.75, beta=0.1), at(1.0, 0.5)], "trl": [at(0.0, 0.25)]},
    }
    ours, theirs, base = frontier_plot.figure(report)["data"]
    assert ours["x"] == [0.0, 1.0, 2.0]
    assert ours["y"] == [0.25, 0.5, 0.75]
    assert ours["text"] == ["", "1", "0.1"]
    assert ours["error_x"]["array"] == [0.0, 3.0, 6.0]
    assert ours["error_x"]["arrayminus"] == [0.0, 0.5, 1.0]
    assert ours["error_y"]["array"] == [0.5, 0.5, 0.5]
    assert ours["name"] != theirs["name"]
    assert base["y"] == [0.25]


def test_the_page_holds_plotly_and_loads_nothing(tmp_path: Path) -> None:
    report = {"base": at(0.0, 0.25), "series": {"rondo": [at(2.0, 0.75)], "trl": []}}
    frontier_plot.write_page(report, tmp_path / "new" / "frontier.html")
    page = (tmp_path / "new" / "frontier.html").read_text("utf-8")
    assert "nats per answer" in page
    assert "<script src" not in page
    assert '<script type="text/javascript" src' not in page


def test_runs_of_both_series_share_everything_but_the_training() -> None:
    """So that a store makes the pairs once, and the base model's answers too."""
    settings = frontier.Settings(["rondo", "trl"], epochs=2, rollouts=4, samples=1)
    plans = []
    for train in settings.series.values():
        for beta in (0.1, 1.0):
            loaded = load(frontier.SPEC, frontier.as_text(settings.overrides(train, beta)))
            plans.append(plan(loaded.spec, loaded.path.parent))
    for key in ("round-1/prepare", "base/heldout-rollout"):
        assert len({step.fingerprint for each in plans for step in each.steps if step.key == key}) == 1
    assert len({each.policy.fingerprint for each in plans}) == 4


def test_quick_asks_for_little_and_bad_numbers_are_refused() -> None:
    quick = frontier.parse(["--quick"])
    assert (quick.betas, quick.epochs, quick.samples) == ([0.1, 1.0], 1, 1)
    assert frontier.parse(["--quick", "--betas", "0.5"]).betas == [0.5]
    with pytest.raises(SystemExit):
        frontier.parse(["--betas", "0"])
