"""Champions: for each pipeline, the policy that the next training starts from, and every one that was it before.

    champions/<name>/000001.json, 000002.json, ...

The newest entry is the champion. An entry is put in place only if none has its number (``Store.create``), so of two
hosts that want to follow the same champion one wins, on a disk and in a bucket; nothing is ever rewritten.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipelines.run.store import ArtifactStore, Manifest
from stages.base import StageError
from stages.hints import closest
from stages.io.store import StoreError


@dataclass(frozen=True)
class Champion:
    """One entry of a pipeline's history."""

    number: int
    policy: str
    """The policy's fingerprint."""
    inputs: str
    """With the fingerprint, where its artifact is (``artifacts/<policy>/<inputs>``)."""
    since: str
    reason: str
    run: str | None = None
    """The run that made it champion; None where a person did."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """What was measured when it became champion."""
    restores: int | None = None
    """The earlier entry that a rollback went back to."""


class NoChampion(StageError):
    """A pipeline has no champion."""


class Moved(StageError):
    """Another process has changed the champion meanwhile."""


class Champions:
    """The champions of one pipeline, the oldest first, as they were when they were read.

    Raises:
        StoreError: an entry is damaged, or the store cannot be reached.
    """

    def __init__(self, store: ArtifactStore, name: str) -> None:
        self._store, self.name = store, name
        places = [f"champions/{name}/{file}" for file in store.store.names(f"champions/{name}") if _is_entry(file)]
        self.history = [
            _entry(f"{store.location.rstrip('/')}/{place}", data)
            for place, data in zip(places, store.store.read_all(places), strict=True)
            if data is not None
        ]

    @property
    def current(self) -> Champion | None:
        return self.history[-1] if self.history else None

    def require(self) -> Champion:
        """The champion.

        Raises:
            NoChampion: there is none; says which there are.
        """
        if self.current is not None:
            return self.current
        known = names(self._store)
        close = closest(self.name, known)
        there = (
            f'did you mean "{close}"?' if close else f"there are: {', '.join(known)}" if known else "there is none yet"
        )
        raise NoChampion(f"{self.name} has no champion in {self._store.location}; {there}")

    def move(
        self, manifest: Manifest, inputs: str, reason: str, run: str | None = None,
        evidence: Mapping[str, Any] | None = None, restores: int | None = None,
    ) -> Champion:  # fmt: skip
        """Make a policy the champion after the one that was read.

        Raises:
            Moved: there is another one meanwhile.
        """
        number = self.current.number + 1 if self.current else 1
        since = datetime.now(UTC).isoformat(timespec="seconds")
        entry = Champion(number, manifest["fingerprint"], inputs, since, reason, run, evidence or {}, restores)
        place = f"champions/{self.name}/{number:06d}.json"
        if not self._store.store.create(place, json.dumps(asdict(entry), indent=1, ensure_ascii=False).encode()):
            raise Moved(
                f"the champion of {self.name} was changed by another command meanwhile; look at it, and try again"
            )
        self.history.append(entry)
        return entry

    def roll_back(self, steps: int, reason: str) -> Champion:
        """Go back to the champion so many changes before this one. What was rolled back is not gone back to.

        Raises:
            NoChampion: there is none so far back.
            Moved: there is another one meanwhile.
        """
        entries = {entry.number: entry for entry in self.history}
        at = self._stands_for(self.require())
        for taken in range(steps):
            before = entries.get(at.number - 1)
            if before is None:
                changes = f"{taken} change{'' if taken == 1 else 's'}"
                raise NoChampion(f"{self.name}: {steps} back is past the beginning; before this champion: {changes}")
            at = self._stands_for(before)
        return self.move(
            manifest_at(self._store, at.policy, at.inputs), at.inputs, reason, at.run, at.evidence, at.number
        )

    def put(self, fingerprint: str, reason: str) -> Champion:
        """Make any policy of the store the champion.

        Raises:
            StageError: no policy's fingerprint begins so, or several do.
            Moved: there is another one meanwhile.
        """
        manifest, inputs = find_policy(self._store, fingerprint)
        return self.move(manifest, inputs, reason)

    def _stands_for(self, entry: Champion) -> Champion:
        """The entry itself, or the one that it restored."""
        return next((each for each in self.history if each.number == entry.restores), entry)


def names(store: ArtifactStore) -> list[str]:
    """The pipelines that have a champion."""
    return store.store.names("champions")


def manifest_at(store: ArtifactStore, fingerprint: str, inputs: str) -> Manifest:
    """The manifest of a policy that is or was a champion.

    Raises:
        StoreError: its artifact was deleted.
    """
    manifest = store.read_json(f"artifacts/{fingerprint}/{inputs}/manifest.json")
    if manifest is None:
        raise StoreError(f"the policy {fingerprint[:12]} is not in {store.location} any more; choose another one")
    return manifest


def find_policy(store: ArtifactStore, fingerprint: str) -> tuple[Manifest, str]:
    """The manifest of the one policy whose fingerprint begins so, and its ``inputs``; of several attempts the latest.

    Raises:
        StageError: there is none, or there are several.
    """
    found: dict[str, list[tuple[Manifest, str]]] = {}
    for whole in store.store.names("artifacts"):
        if not fingerprint or not whole.startswith(fingerprint):
            continue
        for inputs in store.store.names(f"artifacts/{whole}"):
            manifest = store.read_json(f"artifacts/{whole}/{inputs}/manifest.json")
            if manifest is not None and manifest["produces"] == "policy":
                found.setdefault(whole, []).append((manifest, inputs))
    if len(found) != 1:
        several = f"several policies begin so: {', '.join(sorted(each[:16] for each in found))}"
        raise StageError(
            f"{fingerprint or repr(fingerprint)}: {several if found else 'no policy of the store begins so'}"
        )
    (attempts,) = found.values()
    return max(attempts, key=lambda each: str(each[0]["committed"]))


def _is_entry(file: str) -> bool:
    number, _, suffix = file.partition(".")
    return number.isdigit() and suffix == "json"


def _entry(place: str, data: bytes) -> Champion:
    try:
        return Champion(**json.loads(data))
    except (ValueError, TypeError):
        text = "restore it, or delete it: then the entry before it counts"
        raise StoreError(f"{place} is damaged (not an entry of a champion's history); {text}") from None
