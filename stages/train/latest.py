"""The checkpoints that earlier attempts at a training left, found without torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

PROGRESS = "progress.json"
SINGLE = "checkpoints"
"""Folder of a single worker's checkpoints."""
RAY_TRAIN = "ray-train"
"""Folder of Ray Train's run."""
_SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Where Ray Train writes down which of its checkpoints are complete."""


def newest(folders: Iterable[Path | None]) -> Path | None:
    """The checkpoint of the latest step among those that are there."""
    found = [folder for folder in folders if folder is not None and (folder / PROGRESS).is_file()]
    return max(found, key=step_of, default=None)


def step_of(folder: Path) -> int:
    """The step after which a checkpoint was made."""
    return int(json.loads((folder / PROGRESS).read_text(encoding="utf-8"))["step"])


def of_single(work: Path) -> list[Path]:
    """A single worker's checkpoints, the newest last."""
    return sorted((work / SINGLE).glob("step-*"))


def of_ray_train(work: Path) -> Path | None:
    """The newest checkpoint that all workers of an earlier attempt handed in."""
    forget_torn_state(work / RAY_TRAIN)
    snapshot = work / RAY_TRAIN / _SNAPSHOT
    if not snapshot.exists():
        return None
    latest = json.loads(snapshot.read_text(encoding="utf-8")).get("latest_checkpoint_result")
    folder = work / RAY_TRAIN / latest["checkpoint_dir_name"] if latest else None
    return folder if folder is not None and folder.is_dir() else None


def forget_torn_state(run: Path) -> None:
    """Ray Train rewrites its snapshot in place; one that was cut short by a kill would fail every later start."""
    snapshot = run / _SNAPSHOT
    if not snapshot.exists():
        return
    try:
        json.loads(snapshot.read_text(encoding="utf-8"))
    except ValueError:
        print(f"{snapshot} was cut short; training starts from the beginning", flush=True)
        shutil.rmtree(run)
