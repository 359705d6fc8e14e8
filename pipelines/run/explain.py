"""Why a step has to run: the difference to what is there."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from typing import Any

from pipelines.plan.steps import Step
from pipelines.run.store import ArtifactStore


class Explain:
    """Why steps have to run. The store's manifests are read once, when the first reason is asked for."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store

    def __call__(self, step: Step) -> str:
        """The difference to the most similar committed artifact of a step's stage."""
        now = _flat(step.payload)
        differences = [diff(old, now) for old in self._payloads[step.stage.name]]
        if not differences:
            return "new"
        best, defaults = min(differences, key=len), _defaults(step)
        shown = {name: tuple(defaults.get(name) if v is None else v for v in pair) for name, pair in best.items()}
        sentences = [_sentence(name, old, new) for name, (old, new) in sorted(shown.items())]
        return ", ".join(sentences) or "its input is made anew"

    def committed(self, step: Step) -> None:
        """The step's artifact is in the store now."""
        self._payloads[step.stage.name].append(_flat(step.payload))

    @cached_property
    def _payloads(self) -> dict[str, list[dict[str, Any]]]:
        """Flat payloads by stage."""
        found: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for manifest in self._store.manifests():
            payload = manifest.get("payload", {})
            found[payload.get("stage", "")].append(_flat(payload))
        return found


def _defaults(step: Step) -> dict[str, Any]:
    """What a setting is when a payload leaves it out."""
    fields = step.stage.config.model_fields
    return _flat({"config": {name: field.get_default() for name, field in fields.items() if not field.is_required()}})


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or ("." in prefix and not value):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else key)
    return flat


def diff(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The entries in which two flat payloads differ, as (old, new); a missing one is None."""
    return {key: (old.get(key), new.get(key)) for key in old.keys() | new.keys() if old.get(key) != new.get(key)}


def _sentence(name: str, old: Any, new: Any) -> str:
    section, _, key = name.partition(".")
    if section == "inputs":
        return f"{key} changed" if old and new else f"{key} {'added' if new else 'gone'}"
    if section == "plugins":
        return f"source of {key} changed"
    shown = ["default" if value is None else str(value) for value in (old, new)]
    return f"{key or section} {shown[0]} -> {shown[1]}"
