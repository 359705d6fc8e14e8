"""Checkpoints that several workers write into one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from stages.io.output import Output
from stages.io.store import Store
from stages.train.kept import Kept


def test_a_file_that_another_worker_has_yet_to_finish_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors writes under another name first."""
    output = Output(Store(str(tmp_path)), "f" * 64, "inputs")

    def save(folder: Path) -> None:
        (folder / "shard-0").write_bytes(b"mine")
        (folder / ".tmp").write_bytes(b"half")

    def gather(found: list[Any], own: Any) -> None:
        """The other worker comes as far as this one."""
        (written,) = (tmp_path / output.work / "steps").iterdir()
        if (written / ".tmp").exists():
            (written / ".tmp").rename(written / "shard-1")
        found[:] = [own, own]

    monkeypatch.setattr(dist, "broadcast_object_list", lambda values: None)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "all_gather_object", gather)
    Kept(output).keep(3, save, together=True)
    (part,) = output.done("checkpoints").values()
    assert part.files == {"shard-0": 4, "shard-1": 4}
