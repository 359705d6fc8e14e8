"""The artifact store: what is committed, and the records of runs.

What stands below the store's root, on a disk or in a bucket (``stages.io.store``):

    artifacts/<fingerprint>/<inputs>/<part>-<random>/...   the files of a part, made by one task
    artifacts/<fingerprint>/<inputs>/manifest.json         names the parts; without it the artifact is not there
    work/<fingerprint>/<inputs>/                           records of finished parts, and checkpoints; until the commit
    runs/, logs/                                           records and logs of runs

``<inputs>`` tells apart what was made from other attempts at the inputs. Nothing is ever moved or replaced: every part
has a folder of its own, and the manifest, put in place last and only if none is there, is the commit. Of two runs that
finish the same step the first one's manifest stays, and both use it.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from stages.io import locks
from stages.io.artifact import Artifact, Part
from stages.io.output import Output
from stages.io.store import Store, StoreError

T = TypeVar("T")
Manifest = dict[str, Any]
MadeFrom = Mapping[str, str]
"""The attempt of each input's artifact."""


class ArtifactStore:
    """A store at a local path or at a URI (``s3://bucket/prefix``, ``gs://...``, ``az://...``).

    Raises:
        StoreError: the URI is not one of a store, or the local path is no folder.
    """

    def __init__(self, location: str) -> None:
        self.store = Store.at(location)
        self.location = self.store.name
        self.scratch = self.store.scratch
        """What has to be on this machine's disk: locks, logs, and copies of what is in a bucket."""

    # Artifacts

    def manifest(self, fingerprint: str, made_from: MadeFrom) -> Manifest | None:
        """The manifest of a committed artifact, or None."""
        return self.manifest_at(fingerprint, _key(made_from))

    def manifest_at(self, fingerprint: str, inputs: str) -> Manifest | None:
        """The manifest of an artifact by its place, or None."""
        return self.read_json(f"{_place(fingerprint, inputs)}/manifest.json")

    def manifests(self) -> list[Manifest]:
        """Every committed artifact's manifest."""
        places = [
            f"{_place(fingerprint, key)}/manifest.json"
            for fingerprint in self.store.names("artifacts")
            for key in self.store.names(f"artifacts/{fingerprint}")
            if "." not in key
        ]
        pairs = zip(places, self.store.read_all(places), strict=True)
        return [_parsed(place, data) for place, data in pairs if data is not None]

    def open(self, manifest: Manifest) -> Artifact:
        """A committed artifact."""
        return Artifact.of_manifest(self.store, manifest)

    def output(self, fingerprint: str, made_from: MadeFrom) -> Output:
        """Where an artifact is made. What earlier runs left unfinished there counts."""
        return Output(self.store, fingerprint, _key(made_from))

    def commit(self, output: Output, manifest: Mapping[str, Any]) -> Manifest:
        """Make the output's parts the artifact. Returns the manifest that is there then: if another machine has
        committed the same step meanwhile, its result stays, and the parts that it does not use are deleted.
        """
        document = {
            **manifest,
            "fingerprint": output.fingerprint,
            "attempt": uuid.uuid4().hex[:12],
            "parts": [asdict(part) for part in output.parts],
            "committed": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        place = f"{output.place}/manifest.json"
        if not self.create_json(place, document):
            now = self.read_json(place)
            assert now is not None
            document = now
            self.abandon(output.parts, [Part(**part) for part in now["parts"]])
        self.forget_work(output)
        return document

    def abandon(self, made: Iterable[Part], used: Iterable[Part]) -> None:
        """Delete the parts that are not used."""
        places = {part.place for part in used}
        for part in made:
            if part.place not in places:
                self.store.remove(part.place)

    def forget_work(self, output: Output) -> None:
        """Delete what an interrupted stage left to continue from."""
        self.store.remove(output.work)

    def discard(self, output: Output) -> None:
        """Delete what killed runs left and nothing names: with the lock held, on a local disk. In a bucket another
        machine may be at it."""
        if not self.store.is_local:
            return
        used = {part.place for part in output.done().values()}
        for key in self.store.names(f"artifacts/{output.fingerprint}"):
            place = _place(output.fingerprint, key)
            if self.store.read(f"{place}/manifest.json") is not None:
                continue
            for name in self.store.names(place):
                if f"{place}/{name}" not in used:
                    self.store.remove(f"{place}/{name}")

    def lock(self, name: str, timeout: float = -1) -> AbstractContextManager[bool]:
        """Hold a lock among the runs on this machine; it goes when its holder dies. Yields whether it was had.

        Runs on different machines that share a bucket are not kept apart: both do the work, each uses the parts that
        the other has finished before, and the commit keeps one whole result.
        """
        return locks.lock(self.scratch, name, timeout)

    # Run records

    def write_run(self, run: str, record: Mapping[str, Any]) -> None:
        self.write_json(f"runs/{run}.json", record)

    def read_run(self, run: str) -> dict[str, Any] | None:
        return self.read_json(f"runs/{run}.json")

    def runs(self) -> list[str]:
        """Names of all runs, the oldest first."""
        return sorted(name.removesuffix(".json") for name in self.store.names("runs") if name.endswith(".json"))

    def write_json(self, place: str, value: Mapping[str, Any]) -> None:
        """Put a document in place, whatever was there."""
        self.store.write(place, _json(value))

    def create_json(self, place: str, value: Mapping[str, Any]) -> bool:
        """Put a document in place if none is there; returns whether it was."""
        return self.store.create(place, _json(value))

    def parse(self, kind: type[T], place: str, data: bytes, what: str, mend: str) -> T:
        """What was read from a place as a value of a kind, which is ``what`` it should be, for people.

        Raises:
            StoreError: it is damaged; says how to ``mend`` it.
        """
        try:
            hashable: Any = kind  # mypy does not see that a type is
            value: T = _adapter(hashable).validate_json(data)
            return value
        except ValidationError:
            where = f"{self.location.rstrip('/')}/{place}"
            raise StoreError(f"{where} is damaged (not {what}); {mend}") from None

    def read_json(self, place: str) -> dict[str, Any] | None:
        """Raises:
        StoreError: it is damaged, or the store cannot be reached.
        """
        data = self.store.read(place)
        return None if data is None else _parsed(f"{self.location.rstrip('/')}/{place}", data)


@lru_cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _place(fingerprint: str, key: str) -> str:
    return f"artifacts/{fingerprint}/{key}"


def _key(made_from: MadeFrom) -> str:
    return hashlib.sha256(_json(dict(sorted(made_from.items())))).hexdigest()[:12]


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode()


def _parsed(place: str, data: bytes) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(data)
    except ValueError:
        raise StoreError(f"{place} is damaged (not JSON); delete it") from None
    return value
