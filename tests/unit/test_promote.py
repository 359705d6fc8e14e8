from __future__ import annotations

from pathlib import Path

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


def run(folder: Path, config: PromoteConfig, low: float = 0.55) -> Artifact:
    win_rate = {"mean": 0.7, "low": low, "high": 0.8, "prompts": 9}
    inputs = {
        "candidate": policy(folder / "candidate", "new"),
        "champion": policy(folder / "champion", "old"),
        "evaluation": artifacts.made(artifacts.output(folder, "evaluation"), {"win_rate": win_rate}),
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
        ({"win_rate": 1.0, "win_rate_low": 1.0}, ["win_rate is 0.700, below 1.0", "win_rate_low is 0.600, below 1.0"]),
        ({"win_rate": 0.0, "win_rate_low": 0.0}, []),
    ],
)
def test_every_bound_that_is_set_has_to_be_reached(bounds: dict[str, float], misses: list[str]) -> None:
    assert promote.missed(PromoteConfig(**bounds), {"mean": 0.7, "low": 0.6, "high": 0.8}) == misses


def test_a_candidate_that_reaches_the_gate_becomes_the_policy(tmp_path: Path) -> None:
    made = run(tmp_path, PromoteConfig(win_rate_low=0.5))
    assert made.summary == {"promoted": True, "misses": [], "policy": "fingerprint of new"}
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
