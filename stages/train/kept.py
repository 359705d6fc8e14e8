"""Where the checkpoints of a training are kept: in the store, so that whoever continues it, wherever, finds them."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist

from stages.io.artifact import Part
from stages.io.output import Output

_KEPT = 2
"""Checkpoints that are kept."""
_KIND = "checkpoints"
_AGAIN = "-again"
"""Makes a name that sorts behind the first."""
T = TypeVar("T")


class Kept:
    """The checkpoints of one training. Each has a place of its own and counts once its record is there, so that none is
    ever read half written; that of a sharded model is written by all workers, wherever they are."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def newest(self) -> Path | None:
        """The folder of the newest checkpoint, on this machine."""
        if (part := self._newest()) is None:
            return None
        for name, size in part.files.items():
            self._output.store.fetch(part.place, name, size)
        return self._output.store.local(part.place)

    def newest_file(self, name: str) -> Path | None:
        """One file of the newest checkpoint, on this machine."""
        part = self._newest()
        return None if part is None else self._output.store.fetch(part.place, name, part.files[name])

    def _newest(self) -> Part | None:
        kept = self._output.done(_KIND)
        return kept[max(kept)] if kept else None

    def keep(
        self, step: int, save: Callable[[Path], None], together: bool, last: bool = False, again: bool = False
    ) -> None:
        """Keep what ``save`` writes into a folder as the checkpoint of a step.

        Args:
            together: all workers call this, each with its share; else only worker 0 does.
            last: none follows, so earlier ones are of no use.
            again: the step was kept before; this one takes its place.
        """
        store = self._output.store
        place = _of_first(f"{self._output.work}/steps/{step:08d}-{uuid.uuid4().hex[:8]}", together)
        folder = store.local(place)
        folder.mkdir(parents=True, exist_ok=True)
        save(folder)
        _of_all({}, together)  # workers of one machine share the folder: no file of another is in the making any more
        files = _of_all(self._output.upload(place), together)
        if together and dist.get_rank() != 0:
            return
        self._output.record(_KIND, Part(f"{step:08d}{_AGAIN if again else ''}", place, files))
        older = sorted(self._output.done(_KIND).items())[: -1 if last else -_KEPT]
        for name, part in older:
            store.delete(f"{self._output.work}/{_KIND}/{name}")
            store.remove(part.place)


def _of_first(value: str, together: bool) -> str:
    """The value of worker 0."""
    values: list[str] = [value]
    if together:
        dist.broadcast_object_list(values)
    return values[0]


def _of_all(files: dict[str, int], together: bool) -> dict[str, int]:
    """What all workers have written."""
    if not together:
        return files
    found: list[dict[str, int]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(found, files)
    return {name: size for each in found for name, size in each.items()}
