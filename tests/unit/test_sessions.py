"""Where checkpoints of one worker and of several go, and which is gone on from."""

from __future__ import annotations

import json
from pathlib import Path

from stages.train import latest, single


def checkpoint(folder: Path, step: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "progress.json").write_text(json.dumps({"step": step}))
    return folder


def registered(work: Path, step: int) -> Path:
    """A checkpoint that Ray Train says is complete, and a later one that it does not know of."""
    run = work / "ray-train"
    path = checkpoint(run / f"checkpoint_{step}", step)
    checkpoint(run / "checkpoint_of_which_one_part_is_missing", step + 1)
    snapshot = {"latest_checkpoint_result": {"checkpoint_dir_name": path.name}}
    (run / "checkpoint_manager_snapshot.json").write_text(json.dumps(snapshot))
    return path


def test_a_single_workers_checkpoints_appear_whole_and_the_last_two_stay(tmp_path: Path) -> None:
    session = single.SingleSession(tmp_path)
    assert latest.of_single(tmp_path) == []
    for step in (5, 10, 100):
        session.report(step, checkpoint(tmp_path / "scratch", step))
        assert not (tmp_path / "scratch").exists()
        with session.latest() as folder:
            assert folder is not None
            assert json.loads((folder / "progress.json").read_text())["step"] == step
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000010", "step-00000100"]


def test_of_several_workers_only_what_all_have_handed_in_counts(tmp_path: Path) -> None:
    assert latest.of_ray_train(tmp_path) is None
    path = registered(tmp_path, 20)
    assert latest.of_ray_train(tmp_path) == path


def test_the_latest_step_is_gone_on_from_whoever_made_it(tmp_path: Path) -> None:
    several = registered(tmp_path, 20)
    single.SingleSession(tmp_path).report(15, checkpoint(tmp_path / "scratch", 15))
    assert latest.newest([*latest.of_single(tmp_path), latest.of_ray_train(tmp_path)]) == several
    single.SingleSession(tmp_path).report(25, checkpoint(tmp_path / "scratch", 25))
    alone = latest.of_single(tmp_path)[-1]
    assert latest.newest([alone, latest.of_ray_train(tmp_path)]) == alone
    assert latest.newest([None, tmp_path / "gone"]) is None
