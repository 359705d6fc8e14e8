"""What a stage is given: artifacts, as values that can be sent to any worker, and the user's own files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from stages.io.store import Store


@dataclass(frozen=True)
class UserFile:
    """A user's file or folder, where it is: a path or a URI. ``name`` is for people."""

    location: str
    name: str


@dataclass(frozen=True)
class Part:
    """What one task made: a few files in a folder of their own.

    ``place`` is the folder below the store's root, ``files`` are its files with their sizes in bytes, ``counts`` what
    the task counted, ``rows`` among them.
    """

    name: str
    place: str
    files: Mapping[str, int]
    counts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return int(self.counts.get("rows", 0))

    def text(self) -> str:
        """The part as JSON, for records and manifests."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def parse(cls, text: str | bytes) -> Part:
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Table:
    """One Arrow file of an artifact; where it is on this machine is found out when it is asked for."""

    store: Store
    part: Part
    name: str

    @property
    def rows(self) -> int:
        return self.part.rows

    @property
    def path(self) -> Path:
        return self.store.fetch(self.part.place, self.name, self.part.files[self.name])


@dataclass(frozen=True)
class Artifact:
    """An immutable input of a stage. ``attempt`` tells it from one that was made anew."""

    store: Store
    fingerprint: str
    attempt: str
    parts: tuple[Part, ...]
    summary: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_manifest(cls, store: Store, manifest: Mapping[str, Any]) -> Artifact:
        """What a commit has made of parts."""
        parts = tuple(Part(**part) for part in manifest["parts"])
        return cls(store, manifest["fingerprint"], manifest["attempt"], parts, manifest["summary"])

    def has(self, name: str) -> bool:
        return any(name in part.files for part in self.parts)

    def path(self, name: str) -> Path:
        """A file on this machine.

        Raises:
            StoreError: it is damaged, or the store cannot be reached.
            FileNotFoundError: the artifact has no such file.
        """
        for part in self.parts:
            if name in part.files:
                return self.store.fetch(part.place, name, part.files[name])
        raise FileNotFoundError(f"artifact {self.fingerprint[:12]} has no {name}")

    def folder(self) -> Path:
        """All files on this machine, in one folder: for artifacts of a single part, such as policies."""
        (part,) = self.parts
        for name, size in part.files.items():
            self.store.fetch(part.place, name, size)
        return self.store.local(part.place)

    def tables(self, name: str) -> list[Table]:
        """The files of this name in the order of the parts: one long table."""
        return [Table(self.store, part, name) for part in self.parts if name in part.files]


T = TypeVar("T")


def grouped(inputs: Mapping[str, T], name: str) -> list[T]:
    """The inputs given as ``name.0``, ``name.1``, ... in that order."""
    keys = [key for key in inputs if key.partition(".")[0] == name]
    return [inputs[key] for key in sorted(keys, key=lambda key: int(key.partition(".")[2] or 0))]
