"""The lineage of a policy: every artifact that it was made from, and what was measured of it, as the store tells it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import ValidationError

from pipelines.run.store import ArtifactStore, Manifest
from stages.base import Stage
from stages.catalog import EVALUATE, HELDOUT, PROMOTE, REFERENCE, ROLLOUT, STAGES, TRAIN

Id = tuple[str, str]
"""An artifact's fingerprint and attempt."""
_MEASURES = (EVALUATE.name, HELDOUT.name, PROMOTE.name)
_BETWEEN = {ROLLOUT.name: "policy", REFERENCE.name: "policy"}
"""What stands between a measurement and its policy, each with the input that leads on."""


class Lineage:
    """What a policy was made from. An artifact is made from certain attempts at its inputs, which its manifest names;
    another attempt under the same fingerprint may differ in content and does not count.

    Raises:
        StoreError: a manifest is damaged, or the store cannot be reached.
    """

    def __init__(self, store: ArtifactStore, policy: Manifest) -> None:
        self._all = {identity(each): each for each in store.manifests()}
        self._all[identity(policy)] = policy
        self.policy = policy
        made = self._walk([policy])
        trained = {identity(each) for each in made if stage(each) == TRAIN.name}
        measured = [each for each in self._all.values() if self._is_of(each, trained)]
        measured.sort(key=lambda each: (str(each["committed"]), *identity(each)))
        self.artifacts = self._walk([policy, *measured])
        """All of it, inputs before their users; what was measured stands behind what was made."""
        self.used = {identity(each) for each in self._walk([policy], winners=True)}
        """Without the policies that a gate did not let through, and what only they were made from."""

    def input(self, manifest: Manifest, name: str) -> Manifest | None:
        """The artifact that was given as an input; None for a user's file, and for one that was deleted since."""
        attempt = manifest.get("made_from", {}).get(name)
        return self._all.get((manifest["payload"].get("inputs", {}).get(name, ""), attempt or ""))

    def weights(self, policy: Manifest | None) -> Manifest | None:
        """The artifact in which a policy's weights were made: behind gates, which only let one of two through."""
        while policy is not None and stage(policy) == PROMOTE.name:
            policy = self.input(policy, _winner(policy))
        return policy

    def ancestors(self) -> list[Manifest]:
        """The artifacts in which the policy's weights were made, the newest first, back to the first base model."""
        found: list[Manifest] = []
        at = self.weights(self.policy)
        while at is not None:
            found.append(at)
            at = self.weights(self.input(at, "policy")) if stage(at) == TRAIN.name else None
        return found

    def subject(self, measurement: Manifest, name: str = "policy") -> Manifest | None:
        """The policy that an artifact measures, or a ``baseline.NAME``; through answers and log-probabilities."""
        at = self.input(measurement, "candidate" if stage(measurement) == PROMOTE.name else name)
        while at is not None and stage(at) in _BETWEEN:
            at = self.input(at, _BETWEEN[stage(at)])
        return self.weights(at)

    def of(self, made_by: Stage[Any]) -> list[Manifest]:
        """The artifacts that a stage has made."""
        return [each for each in self.artifacts if stage(each) == made_by.name]

    def files(self) -> list[dict[str, str]]:
        """The user's files, each with its fingerprint and the artifact that was made from it."""
        found = []
        for each in self.artifacts:
            for name, fingerprint in each["payload"].get("inputs", {}).items():
                if name not in each.get("made_from", {}):
                    named = _file_name(each, name)
                    found.append({**({"name": named} if named else {}), "fingerprint": fingerprint, "input": name,
                                  "of": each["fingerprint"]})  # fmt: skip
        return found

    def missing(self) -> list[dict[str, str]]:
        """Inputs that were deleted from the store: the lineage ends there."""
        gone = {
            (each["payload"]["inputs"][name], attempt): None
            for each in self.artifacts
            for name, attempt in each.get("made_from", {}).items()
            if self.input(each, name) is None
        }
        return [{"fingerprint": fingerprint, "attempt": attempt} for fingerprint, attempt in gone]

    def _is_of(self, manifest: Manifest, trained: set[Id]) -> bool:
        if stage(manifest) not in _MEASURES:
            return False
        subject = self.subject(manifest)
        return subject is not None and identity(subject) in trained

    def _inputs(self, manifest: Manifest, winners: bool) -> Iterator[Manifest]:
        names: Iterable[str] = manifest.get("made_from", {})
        if winners and stage(manifest) == PROMOTE.name:
            names = (_winner(manifest),)
        for name in names:
            if (found := self.input(manifest, name)) is not None:
                yield found

    def _walk(self, roots: Iterable[Manifest], winners: bool = False) -> list[Manifest]:
        """The roots and all that they were made from, inputs first. Without recursion: years of nightly champions are
        a long way back."""
        order: dict[Id, Manifest] = {}
        for root in roots:
            path = [(root, self._inputs(root, winners))]
            begun = {identity(root)}
            while path:
                manifest, inputs = path[-1]
                following = next((each for each in inputs if identity(each) not in order.keys() | begun), None)
                if following is None:
                    order.setdefault(identity(manifest), manifest)
                    path.pop()
                else:
                    begun.add(identity(following))
                    path.append((following, self._inputs(following, winners)))
        return list(order.values())


def identity(manifest: Manifest) -> Id:
    return manifest["fingerprint"], manifest["attempt"]


def stage(manifest: Manifest) -> str:
    return str(manifest["payload"].get("stage", ""))


def settings(manifest: Manifest) -> dict[str, Any]:
    """The configuration that an artifact was made with, defaults included where this version's are those of then."""
    payload = manifest["payload"]
    config: dict[str, Any] = payload.get("config", {})
    for known in STAGES:
        if known.name == payload.get("stage") and known.version == payload.get("version"):
            try:
                filled: dict[str, Any] = known.config.model_validate(config).model_dump(mode="json")
                return filled
            except ValidationError:
                break
    return dict(config)


def _winner(promotion: Manifest) -> str:
    return "candidate" if promotion["summary"].get("promoted") else "champion"


def _file_name(manifest: Manifest, name: str) -> str | None:
    """A user's file as its manifest names it: a model's folder, a file of preferences; prompts have no names there."""
    if name == "source":
        return str(manifest["summary"].get("source") or "") or None
    key = str(manifest.get("key", ""))
    return key.removeprefix("preferences/") if key.startswith("preferences/") else None
