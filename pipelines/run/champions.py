"""Champions: for each pipeline, the policy that the next training starts from, and every one that was it before.

    champions/<name>/000001.json, 000002.json, ...

The newest entry is the champion. An entry is put in place only if none has its number (``Store.create``), so of two
hosts that want to follow the same champion one wins, on a disk and in a bucket; nothing is ever rewritten.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, NoReturn

from pipelines.run.store import ArtifactStore, Manifest
from pipelines.spec.models import CHAMPION, NAME, ChampionSource
from stages.base import StageError
from stages.hints import closest
from stages.io.filenames import MODEL
from stages.io.store import StoreError
from stages.policy.config import ModelSource


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
    """What that run had measured."""
    restores: int | None = None
    """The earlier entry that a rollback went back to; its run and evidence stand there."""


_MEND = "restore it, or delete it: then the entry before it counts"


class NoChampion(StageError):
    """A pipeline has no champion."""


class Moved(StageError):
    """Another process has changed the champion meanwhile."""


class Champions:
    """The champions of one pipeline, the oldest first, as they were when they were read.

    Raises:
        NoChampion: the name is not one that a pipeline can have.
        StoreError: an entry is damaged, or the store cannot be reached.
    """

    def __init__(self, store: ArtifactStore, name: str) -> None:
        if not re.match(NAME, name):
            raise NoChampion(f"{name!r} is no pipeline's name: those have lower-case letters, digits and hyphens")
        self._store, self.name = store, name
        places = [f"champions/{name}/{file}" for file in store.store.names(f"champions/{name}") if _is_entry(file)]
        self.history = [
            store.parse(Champion, place, data, "an entry of a champion's history", _MEND)
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
        known = [name for name in names(self._store) if name != self.name]
        close = closest(self.name, known)
        there = (
            f'did you mean "{close}"?' if close else f"there are: {', '.join(known)}" if known else "there is none yet"
        )
        raise NoChampion(f"{self.name} has no champion in {self._store.location}; {there}")

    def move(
        self, policy: str, inputs: str, reason: str, run: str | None = None,
        evidence: Mapping[str, Any] | None = None, restores: int | None = None,
    ) -> Champion:  # fmt: skip
        """Make a policy the champion after the one that was read.

        Raises:
            Moved: there is another one meanwhile.
        """
        number = self.current.number + 1 if self.current else 1
        since = datetime.now(UTC).isoformat(timespec="seconds")
        entry = Champion(number, policy, inputs, since, reason, run, evidence or {}, restores)
        place = f"champions/{self.name}/{number:06d}.json"
        if not self._store.create_json(place, asdict(entry)):
            raise Moved(
                f"the champion of {self.name} was changed by another command meanwhile; look at it, and try again"
            )
        self.history.append(entry)
        return entry

    def roll_back(self, steps: int, reason: str) -> Champion:
        """Go back to the champion so many changes before this one. What was rolled back is not gone back to.

        Raises:
            NoChampion: there is none so far back.
            StoreError: its policy was deleted.
            Moved: there is another one meanwhile.
        """
        at = self._stands_for(self.require())
        for taken in range(steps):
            place = self.history.index(at)
            if place == 0:
                changes = f"{taken} change{'' if taken == 1 else 's'}"
                raise NoChampion(f"{self.name}: {steps} back is past the beginning; before this champion: {changes}")
            at = self._stands_for(self.history[place - 1])
        if self._store.manifest_at(at.policy, at.inputs) is None:
            raise StoreError(
                f"the policy {at.policy[:12]} is not in {self._store.location} any more; choose another one"
            )
        return self.move(at.policy, at.inputs, reason, restores=at.number)

    def put(self, fingerprint: str, reason: str) -> Champion:
        """Make any policy of the store the champion.

        Raises:
            StageError: no policy's fingerprint begins so, or several do.
            Moved: there is another one meanwhile.
        """
        return self.move(*find_policy(self._store, fingerprint), reason)

    def _stands_for(self, entry: Champion) -> Champion:
        """The entry itself, or the one that it restored."""
        return next((each for each in self.history if each.number == entry.restores), entry)


def named(store: ArtifactStore, text: str) -> tuple[Champions, Champion]:
    """The champion that ``NAME`` means, or the one of its history that ``NAME@3`` means.

    Raises:
        NoChampion: there is no such one.
        StoreError: an entry is damaged, or the store cannot be reached.
    """
    name, at, number = text.partition("@")
    champions = Champions(store, name)
    entry = champions.require()
    if at:
        entry = next((each for each in champions.history if str(each.number) == number), None) or _none_such(champions)
    return champions, entry


def source(store: ArtifactStore, given: ModelSource) -> ChampionSource:
    """The champion that a spec starts from: ``champion://NAME``, or one of its history, ``champion://NAME@3``.

    Raises:
        NoChampion: there is no such one.
        StoreError: its entry is damaged, or its policy was deleted.
    """
    champions, entry = named(store, given.model.removeprefix(CHAMPION))
    manifest = store.manifest_at(entry.policy, entry.inputs)
    if manifest is None:
        raise NoChampion(f"the policy of {CHAMPION}{champions.name}@{entry.number} was deleted from {store.location}")
    artifact = store.open(manifest)
    (part,) = artifact.parts
    for file in part.files:
        if file.startswith(f"{MODEL}/") and not file.endswith(".safetensors"):
            artifact.path(file)
    return ChampionSource(
        **{**given.model_dump(), "model": f"{CHAMPION}{champions.name}@{entry.number}"},
        made=(entry.policy, entry.inputs), folder=store.store.local(part.place) / MODEL,
    )  # fmt: skip


def _none_such(champions: Champions) -> NoReturn:
    numbers = ", ".join(str(each.number) for each in champions.history)
    raise NoChampion(f"{champions.name} had no champion of that number; there are {numbers}")


def names(store: ArtifactStore) -> list[str]:
    """The pipelines that have a champion, or had one."""
    return [name for name in store.store.names("champions") if re.match(NAME, name)]


def find_policy(store: ArtifactStore, fingerprint: str) -> tuple[str, str]:
    """The whole fingerprint of the one policy whose fingerprint begins so, and its ``inputs``; of several attempts the
    latest.

    Raises:
        StageError: there is none, or there are several.
    """
    found: dict[str, dict[str, Manifest]] = {}
    for whole in store.store.names("artifacts"):
        if not fingerprint or not whole.startswith(fingerprint):
            continue
        for inputs in store.store.names(f"artifacts/{whole}"):
            manifest = store.manifest_at(whole, inputs)
            if manifest is not None and manifest["produces"] == "policy":
                found.setdefault(whole, {})[inputs] = manifest
    if len(found) != 1:
        several = f"several policies begin so: {', '.join(sorted(each[:16] for each in found))}"
        raise StageError(
            f"{fingerprint or repr(fingerprint)}: {several if found else 'no policy of the store begins so'}"
        )
    ((whole, attempts),) = found.items()
    return whole, max(attempts, key=lambda inputs: str(attempts[inputs]["committed"]))


def _is_entry(file: str) -> bool:
    number, _, suffix = file.partition(".")
    return number.isdigit() and suffix == "json"
