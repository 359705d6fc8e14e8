"""What a stage makes: parts, each written by one task straight into the store."""

from __future__ import annotations

import json
import shutil
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.io import cache
from stages.io.artifact import Artifact, Part
from stages.io.quarantine import REASONS, Quarantine, fewest_reasons
from stages.io.store import Store
from stages.io.tables import write_table


@dataclass
class PartWriter:
    """A part in the making: a folder to write files into, and what to count."""

    folder: Path
    counts: dict[str, Any] = field(default_factory=dict)
    made: Part = field(init=False)
    """The part, once it is written."""
    _quarantine: Quarantine | None = field(default=None, init=False)

    def table(self, name: str, tables: Iterable[pa.Table], schema: pa.Schema) -> int:
        """Write tables of one schema as one Arrow file; returns and counts its rows."""
        self.counts["rows"] = write_table(self.folder / name, tables, schema)
        return int(self.counts["rows"])

    @property
    def quarantine(self) -> Quarantine:
        """Where rows go that cannot be used; its totals are counted."""
        if self._quarantine is None:
            self._quarantine = Quarantine(self.folder)
        return self._quarantine

    def finish(self) -> None:
        if self._quarantine is not None:
            self._quarantine.close()
            self.counts |= self._quarantine.summary


@dataclass(frozen=True)
class Output:
    """The artifact that a stage makes, before it is committed.

    A value that can be sent to workers. Each part is written into a folder of its own name; the record that is written
    after it makes it count, of several for the same part the first. What was finished stays when a run is killed, and
    counts for a later one that is given the same inputs.
    """

    store: Store
    fingerprint: str
    inputs: str
    """Tells apart what was made from other artifacts under the same fingerprint."""
    parts: list[Part] = field(default_factory=list)
    """The finished parts in the artifact's order. Only the driver's count."""

    @property
    def place(self) -> str:
        return f"artifacts/{self.fingerprint}/{self.inputs}"

    @property
    def work(self) -> str:
        """What an interrupted stage continues from; deleted after the commit."""
        return f"work/{self.fingerprint}/{self.inputs}"

    def committed(self) -> Artifact | None:
        """What is there already."""
        data = self.store.read(f"{self.place}/manifest.json")
        return None if data is None else Artifact.of_manifest(self.store, json.loads(data))

    def done(self, kind: str = "parts") -> dict[str, Part]:
        """The finished parts (or ``checkpoints``) by name."""
        records = f"{self.work}/{kind}"
        found = self.store.read_all([f"{records}/{name}" for name in self.store.names(records)])
        parts = [Part.parse(data) for data in found if data]
        return {part.name: part for part in parts}

    @contextmanager
    def part(self, name: str) -> Iterator[PartWriter]:
        """Write the artifact's next part."""
        with self.writer(name) as writer:
            yield writer
        self.parts.append(writer.made)

    @contextmanager
    def writer(self, name: str) -> Iterator[PartWriter]:
        """Write a part: what is in the folder when the block ends is uploaded, then recorded (``PartWriter.made``)."""
        place = f"{self.place}/{name}-{uuid.uuid4().hex[:8]}"
        writer = PartWriter(self.store.local(place))
        writer.folder.mkdir(parents=True)
        self.store.keep(place)  # from now on, so that what a killed worker leaves in the cache goes one day
        try:
            yield writer
            writer.finish()
            made = Part(name, place, self.upload(place), writer.counts)
            writer.made = self.record("parts", made)
        except BaseException:
            shutil.rmtree(writer.folder, ignore_errors=True)
            raise

    def discard(self, part: Part) -> None:
        """Forget a finished part: the next run makes it again."""
        self.store.delete(f"{self.work}/parts/{part.name}")
        self.store.remove(part.place)

    def upload(self, place: str) -> dict[str, int]:
        """Put the files of a folder into the store; returns their sizes."""
        folder = self.store.local(place)
        files = [file for file in folder.rglob("*") if file.is_file() and file.name not in cache.OWN]
        names = sorted(file.relative_to(folder).as_posix() for file in files)
        for name in names:
            self.store.put(f"{place}/{name}")
        sizes = {name: (folder / name).stat().st_size for name in names}
        self.store.keep(place)
        return sizes

    def record(self, kind: str, made: Part) -> Part:
        """Make a part count; returns the one that does, which may be another's who was faster."""
        place, data = f"{self.work}/{kind}/{made.name}", made.text().encode()
        if self.store.create(place, data):
            return made
        self.store.remove(made.place)
        earlier = self.store.read(place)
        assert earlier is not None
        return Part.parse(earlier)


def add_up(counts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The sums of what parts counted; of numbers under the same name, also inside of mappings."""
    total: dict[str, Any] = {}
    for each in counts:
        for name, value in each.items():
            if isinstance(value, Mapping):
                total[name] = dict((Counter(total.get(name, {})) + Counter(value)).most_common())
            else:
                total[name] = total.get(name, 0) + value
    if len(total.get("quarantine_reasons", {})) > REASONS:
        total["quarantine_reasons"] = fewest_reasons(total["quarantine_reasons"])
    return total
