"""The checkpoints of a training, and which is gone on from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.train.kept import Kept
from tests import artifacts


def saving(step: int) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        (folder / "progress.json").write_text(json.dumps({"step": step}))

    return save


def newest(kept: Kept) -> int | None:
    folder = kept.newest()
    return None if folder is None else int(json.loads((folder / "progress.json").read_text())["step"])


def test_the_newest_checkpoint_is_gone_on_from_and_the_last_two_stay(tmp_path: Path) -> None:
    output = artifacts.output(tmp_path, "train")
    kept = Kept(output)
    assert newest(kept) is None
    for step in (5, 10, 100):
        kept.keep(step, saving(step), together=False)
        assert newest(Kept(output)) == step
    assert list(output.done("checkpoints")) == ["00000010", "00000100"]
    steps = tmp_path / output.work / "steps"
    assert sorted(path.name.partition("-")[0] for path in steps.iterdir()) == ["00000010", "00000100"]


def test_of_a_training_that_has_ended_the_last_checkpoint_stays_alone(tmp_path: Path) -> None:
    output = artifacts.output(tmp_path, "train")
    kept = Kept(output)
    for step in (5, 10):
        kept.keep(step, saving(step), together=False, last=step == 10)
    assert list(output.done("checkpoints")) == ["00000010"]
    kept.keep(10, saving(99), together=False, last=True, again=True)  # measured since
    assert newest(Kept(output)) == 99
    assert len(output.done("checkpoints")) == 1


def test_a_checkpoint_that_was_not_finished_does_not_count(tmp_path: Path) -> None:
    kept = Kept(artifacts.output(tmp_path, "train"))
    kept.keep(5, saving(5), together=False)

    def broken(folder: Path) -> None:
        saving(10)(folder)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        kept.keep(10, broken, together=False)
    assert newest(kept) == 5
