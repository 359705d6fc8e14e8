from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from stages.base import Artifact, Resources, StageContext
from stages.io.filenames import CHAT, MODEL
from stages.judge import promote
from stages.judge.config import PromoteConfig


def policy(folder: Path, text: str) -> Artifact:
    (folder / MODEL / "deep").mkdir(parents=True)
    (folder / MODEL / "model.safetensors").write_text(text)
    (folder / MODEL / "deep" / "file.json").write_text(text)
    (folder / CHAT).write_text(text)
    return Artifact(folder, f"fingerprint of {text}")


def run(folder: Path, config: PromoteConfig, low: float = 0.55) -> dict[str, Any]:
    (folder / "output").mkdir()
    win_rate = {"mean": 0.7, "low": low, "high": 0.8, "prompts": 9}
    inputs = {
        "candidate": policy(folder / "candidate", "new"),
        "champion": policy(folder / "champion", "old"),
        "evaluation": Artifact(folder / "evaluation", "e", {"win_rate": win_rate}),
    }
    context = StageContext("f", folder / "output", folder, Resources(), lambda done, total, note: None)
    return promote.run(config, inputs, context)


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
    summary = run(tmp_path, PromoteConfig(win_rate_low=0.5))
    assert summary == {"promoted": True, "misses": [], "policy": "fingerprint of new"}
    assert (tmp_path / "output" / MODEL / "model.safetensors").read_text() == "new"
    assert (tmp_path / "output" / MODEL / "deep" / "file.json").read_text() == "new"


@pytest.mark.parametrize(("bound", "text"), [(0.5, "new"), (0.9, "old")])
def test_what_the_template_is_told_goes_with_the_policy(bound: float, text: str, tmp_path: Path) -> None:
    run(tmp_path, PromoteConfig(win_rate=bound))
    assert (tmp_path / "output" / CHAT).read_text() == text


def test_a_candidate_that_misses_the_gate_leaves_the_champion(tmp_path: Path) -> None:
    summary = run(tmp_path, PromoteConfig(win_rate_low=0.6))
    assert summary["promoted"] is False
    assert len(summary["misses"]) == 1
    assert summary["policy"] == "fingerprint of old"
    assert (tmp_path / "output" / MODEL / "model.safetensors").read_text() == "old"


def test_files_are_linked_and_outlive_their_source(tmp_path: Path) -> None:
    run(tmp_path, PromoteConfig())
    files = [folder / MODEL / "model.safetensors" for folder in (tmp_path / "candidate", tmp_path / "output")]
    assert files[0].stat().st_ino == files[1].stat().st_ino
    shutil.rmtree(tmp_path / "candidate")
    assert files[1].read_text() == "new"


def test_files_are_copied_where_they_cannot_be_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError("another disk")

    monkeypatch.setattr("os.link", refuse)
    run(tmp_path, PromoteConfig())
    assert (tmp_path / "output" / MODEL / "model.safetensors").read_text() == "new"
