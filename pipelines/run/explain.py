"""Why a step has to run: the difference to what is there."""

from __future__ import annotations

from typing import Any

from pipelines.plan.steps import Step
from pipelines.run.store import ArtifactStore


def explain(step: Step, store: ArtifactStore) -> str:
    """Why a step has to run: the difference to the most similar committed artifact of its stage."""
    best: dict[str, tuple[Any, Any]] | None = None
    defaults = _defaults(step)
    for manifest in store.manifests():
        payload = manifest.get("payload", {})
        if payload.get("stage") != step.stage.name:
            continue
        difference = diff(_flat(payload), _flat(step.payload))
        if best is None or len(difference) < len(best):
            best = difference
    if best is None:
        return "new"
    shown = {name: tuple(defaults.get(name) if v is None else v for v in pair) for name, pair in best.items()}
    sentences = [_sentence(name, old, new) for name, (old, new) in sorted(shown.items())]
    return ", ".join(sentences) or "its input is made anew"


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
