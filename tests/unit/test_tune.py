"""The search of a sweep without Ray: its points, what it is told, and when trials are measured."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from stages.train.arguments import MEASURED
from stages.tune import search
from stages.tune.config import SweepConfig
from stages.tune.told import Rungs, at_end, result, scores

SPACE = {"beta": {"loguniform": [0.01, 1]}, "batch_size": {"randint": [2, 4]}, "loss": ["sigmoid", "ipo"]}


def settings(**values: Any) -> SweepConfig:
    return SweepConfig.model_validate({"space": SPACE, **values})


def test_random_points_are_the_same_each_time_and_more_of_them_begin_with_these() -> None:
    few, many = (list(search.points(settings(search="random", trials=n))) for n in (5, 40))
    assert many[:5] == few
    assert {point["batch_size"] for point in many} == {2, 3, 4}
    assert {point["loss"] for point in many} == {"sigmoid", "ipo"}
    assert all(0.01 <= point["beta"] <= 1 and type(point["batch_size"]) is int for point in many)
    assert 10 <= sum(point["beta"] < 0.1 for point in many) <= 30  # in equal shares of the logarithm
    assert list(search.points(settings(search="random", trials=5, seed=1))) != few


def test_a_grid_has_all_combinations() -> None:
    found = list(search.points(settings(space={"beta": [1, 2], "loss": ["a", "b"]}, search="grid")))
    assert found == [{"beta": b, "loss": name} for b in (1, 2) for name in ("a", "b")]
    other = list(search.points(settings(space={"loss": ["a", "b"], "beta": [1, 2]}, search="grid")))
    assert other == found  # it is the same sweep, however its settings are ordered


def test_lists_are_drawn_from_without_repetition() -> None:
    space = {"beta": [1, 2, 3], "loss": ["a", "b"]}
    found = list(search.points(settings(space=space, search="random", trials=6)))
    assert len({(point["beta"], point["loss"]) for point in found}) == 6
    assert list(search.points(settings(space=space, search="random", trials=2))) == found[:2]


@pytest.mark.parametrize(
    ("scheduler", "shares", "units"),
    [
        ("none", (1.0,), (1,)),
        ({"use": "none", "measurements": 2}, (0.5, 1.0), (1, 2)),
        ("asha", (1 / 9, 1 / 3, 1.0), (1, 3, 9)),
        ({"use": "asha", "reduction": 2, "rungs": 2}, (0.5, 1.0), (1, 2)),
        ("median", (0.25, 0.5, 0.75, 1.0), (1, 2, 3, 4)),
    ],
)
def test_when_trials_are_measured(scheduler: Any, shares: tuple[float, ...], units: tuple[int, ...]) -> None:
    rungs = search.rungs(settings(scheduler=scheduler))
    assert rungs.units == units
    assert [step / 10_000 for step in rungs.steps(10_000)] == pytest.approx(shares, abs=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 5, 9, 100])
def test_the_end_of_a_training_is_always_measured(steps: int) -> None:
    rungs = Rungs((1, 3, 9))
    assert rungs.steps(steps)[-1] == steps
    assert rungs.steps(steps)[0] >= 1
    assert rungs.reached(steps, steps) == 9
    assert rungs.reached(0, steps) == 0


def row(step: int, accuracy: float | None = None, steps: int = 9) -> dict[str, Any]:
    measured = {} if accuracy is None else {MEASURED + "reward_accuracy": accuracy, MEASURED + "loss": 0.6}
    return {"step": step, "steps": steps, "loss": 0.7, "reward_accuracy": 0.5, "grad_norm": 1.0, **measured}


def test_what_is_told_of_a_training() -> None:
    rows = [row(1, 0.25), row(2), row(3, 0.5), row(4)]
    found = result(Rungs((1, 3, 9)), rows)
    assert found == {
        "share": 4 / 9, "units": 3, "reward_accuracy": 0.5, "heldout_loss": 0.6,
        "scores": {"reward_accuracy": 0.5, "heldout_loss": 0.6},
        "curve": [
            {"share": 1 / 9, "units": 1, "reward_accuracy": 0.25, "heldout_loss": 0.6},
            {"share": 3 / 9, "units": 3, "reward_accuracy": 0.5, "heldout_loss": 0.6},
        ],
        "training": [{"step": n, "steps": 9, "loss": 0.7, "reward_accuracy": 0.5} for n in (1, 2, 3, 4)],
    }  # fmt: skip
    assert not at_end(rows)
    assert at_end([*rows, row(9)])
    assert scores([row(1), row(2)]) == {}
    assert result(Rungs((1,)), [])["scores"] == {}


def test_the_curve_of_a_long_training_is_thinned() -> None:
    found = result(Rungs((1,)), [row(n + 1, steps=5000) for n in range(5000)])
    assert 100 < len(found["training"]) <= 200


class Search:
    """A search that notes what it is told."""

    metric: Any = "reward_accuracy"

    def __init__(self) -> None:
        self.told: list[Any] = []

    def suggest(self, trial_id: str) -> Any:
        return {"beta": 0.5}

    def on_trial_result(self, trial_id: str, result: Any) -> None:
        self.told.append((trial_id, result))

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        self.told.append((trial_id, result, error))


@pytest.mark.parametrize(
    ("end", "error", "told"),
    [
        ({"reward_accuracy": 0.5}, False, ("a", {"reward_accuracy": 0.5}, False)),
        ({"failed": "not finite"}, False, ("a", None, True)),
        ({"share": 0.0}, False, ("a", None, True)),
        (None, True, ("a", None, True)),
        ({"reward_accuracy": 0.5}, True, ("a", None, True)),
    ],
)
def test_a_search_learns_of_failures_as_such(end: Any, error: bool, told: Any) -> None:
    inner = Search()
    points = search.Points(inner, lambda number, point: (number, point))  # type: ignore[arg-type,return-value]
    assert points.suggest("a") == {"trial": (1, {"beta": 0.5})}
    assert points.suggest("b") == {"trial": (2, {"beta": 0.5})}
    points.on_trial_result("a", {"failed": "no"})
    points.on_trial_complete("a", end, error)
    assert inner.told == [told]


def test_points_that_are_known_come_first_and_new_ones_differ() -> None:
    first = search._searcher(settings(), [])
    known = [first.suggest(str(n)) for n in range(3)]
    again = search._searcher(settings(), known)
    found = [again.suggest(str(n)) for n in range(6)]
    assert found[:3] == known
    assert not [point for point in found[3:] if point in known]


def test_what_ray_tune_writes_down_of_a_search_is_nothing() -> None:
    points = search.Points(Search(), lambda number, point: None)  # type: ignore[arg-type,return-value]
    points.handle = open(__file__)  # noqa: SIM115 - what cannot be pickled
    assert len(pickle.dumps(points)) < 500
    points.handle.close()
