from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stages.catalog import PROMOTE
from stages.io.artifact import Artifact
from stages.io.filenames import CHAT, MODEL
from stages.judge import promote
from stages.judge.config import PromoteConfig
from tests import artifacts


def policy(folder: Path, text: str) -> Artifact:
    (folder / MODEL / "deep").mkdir(parents=True)
    (folder / MODEL / "model.safetensors").write_text(text)
    (folder / MODEL / "deep" / "file.json").write_text(text)
    (folder / CHAT).write_text(text)
    return artifacts.of_folder(folder, f"fingerprint of {text}")


def measured(win_rate: dict[str, float], **more: Any) -> dict[str, Any]:
    """The summary of an evaluation."""
    checks = {name: more.pop(name) for name in ("checks", "kl") if name in more}
    return {"baseline": "previous", "against": {"previous": {"win_rate": win_rate, **more}, "base": {}}, **checks}


def run(folder: Path, config: PromoteConfig, low: float = 0.55) -> Artifact:
    win_rate = {"mean": 0.7, "low": low, "high": 0.8, "prompts": 9}
    inputs = {
        "candidate": policy(folder / "candidate", "new"),
        "champion": policy(folder / "champion", "old"),
        "evaluation": artifacts.made(artifacts.output(folder, "evaluation"), measured(win_rate)),
    }
    return artifacts.run(PROMOTE, folder, config, inputs)


@pytest.mark.parametrize(
    ("bounds", "misses"),
    [
        ({}, []),
        ({"win_rate": 0.7, "win_rate_low": 0.6}, []),
        ({"win_rate": 0.71}, ["win_rate is 0.700, below 0.71"]),
        ({"win_rate_low": 0.65}, ["win_rate_low is 0.600, below 0.65"]),
        ({"win_rate": 0.5, "win_rate_low": 0.65}, ["win_rate_low is 0.600, below 0.65"]),
        ({"win_rate": 1.0, "win_rate_low": 1.0}, ["win_rate is 0.700, below 1", "win_rate_low is 0.600, below 1"]),
        ({"win_rate": 0.0, "win_rate_low": 0.0}, []),
    ],
)
def test_every_bound_that_is_set_has_to_be_reached(bounds: dict[str, float], misses: list[str]) -> None:
    evaluation = measured({"mean": 0.7, "low": 0.6, "high": 0.8})
    found = [bound.miss for bound in promote.bounds(PromoteConfig(**bounds), evaluation)]
    assert [miss for miss in found if miss] == misses


MEASURED = measured(
    {"mean": 0.7, "low": 0.6, "high": 0.8},
    length_controlled={"mean": 0.6, "low": 0.4, "high": 0.7},
    length_ratio=1.5,
    agreement=0.25,
    tasks={"math": {"win_rate": {"mean": 0.9}, "change": {"mean": -0.25}}, "code": {"win_rate": {"mean": 0.25}}},
    checks={"change": {"mean": -0.125}},
    kl={"mean": 12.5},
)


@pytest.mark.parametrize(
    ("bounds", "miss"),
    [
        ({"length_controlled": 0.6}, None),
        ({"length_controlled": 0.65}, "length_controlled is 0.600, below 0.65"),
        ({"length_controlled_low": 0.45}, "length_controlled_low is 0.400, below 0.45"),
        ({"max_kl": 12.5}, None),
        ({"max_kl": 10}, "kl is 12.500, above 10"),
        ({"min_agreement": 0.25}, None),
        ({"min_agreement": 0.5}, "agreement is 0.250, below 0.5"),
        ({"max_length_ratio": 1.5}, None),
        ({"max_length_ratio": 1.2}, "length_ratio is 1.500, above 1.2"),
        ({"max_regression": {"math": 0.25}}, None),
        ({"max_regression": {"math": 0.2}}, "regression on math is 0.250, above 0.2"),
        ({"max_regression": {"code": 0.25}}, None),
        ({"max_regression": {"code": 0.0}}, "regression on code is 0.250, above 0"),
        ({"max_regression": {"law": 0.1}}, "regression on law was not measured, and has to be at most 0.1"),
        ({"max_check_regression": 0.125}, None),
        ({"max_check_regression": 0.1}, "regression on checks is 0.125, above 0.1"),
    ],
)
def test_other_bounds(bounds: dict[str, Any], miss: str | None) -> None:
    (found,) = promote.bounds(PromoteConfig(**bounds), MEASURED)
    assert found.miss == miss


def test_what_is_no_number_is_a_miss() -> None:
    (found,) = promote.bounds(PromoteConfig(max_kl=1), measured({"mean": 1.0, "low": 1.0}, kl={"mean": float("nan")}))
    assert found.miss == "kl was not measured, and has to be at most 1"


def test_what_was_not_measured_is_a_miss() -> None:
    (found,) = promote.bounds(PromoteConfig(max_check_regression=0.1), measured({"mean": 1.0, "low": 1.0}))
    assert found.miss == "regression on checks was not measured, and has to be at most 0.1"


def test_a_candidate_that_reaches_the_gate_becomes_the_policy(tmp_path: Path) -> None:
    made = run(tmp_path, PromoteConfig(win_rate_low=0.5))
    assert made.summary == {
        "promoted": True, "misses": [], "policy": "fingerprint of new",
        "candidate": "fingerprint of new", "champion": "fingerprint of old",
        "evidence": {"win_rate_low": {"limit": 0.5, "measured": 0.55}},
    }  # fmt: skip
    assert (made.folder() / MODEL / "model.safetensors").read_text() == "new"
    assert (made.folder() / MODEL / "deep" / "file.json").read_text() == "new"


@pytest.mark.parametrize(("bound", "text"), [(0.5, "new"), (0.9, "old")])
def test_what_the_template_is_told_goes_with_the_policy(bound: float, text: str, tmp_path: Path) -> None:
    assert run(tmp_path, PromoteConfig(win_rate=bound)).path(CHAT).read_text() == text


def test_a_candidate_that_misses_the_gate_leaves_the_champion(tmp_path: Path) -> None:
    made = run(tmp_path, PromoteConfig(win_rate_low=0.6))
    assert made.summary["promoted"] is False
    assert len(made.summary["misses"]) == 1
    assert made.summary["policy"] == "fingerprint of old"
    assert (made.folder() / MODEL / "model.safetensors").read_text() == "old"


@pytest.mark.parametrize(("bound", "winner"), [(0.5, "candidate"), (0.9, "champion")])
def test_the_winners_parts_are_named_and_nothing_is_written(bound: float, winner: str, tmp_path: Path) -> None:
    made = run(tmp_path, PromoteConfig(win_rate=bound))
    assert made.fingerprint == PROMOTE.name
    assert made.parts == artifacts.of_folder(tmp_path / winner).parts
    assert made.folder() == tmp_path / winner
    assert {path.name for path in tmp_path.iterdir()} == {"candidate", "champion"}
