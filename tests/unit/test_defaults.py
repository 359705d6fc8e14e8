"""Defaults are part of every identity without being written in it, so none may change in silence.

``python -m tests.unit.test_defaults`` in the repository's root writes the record anew.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import to_jsonable_python

from stages.base import Config
from stages.catalog import STAGES

RECORD = Path(__file__).parents[1] / "golden" / "defaults.json"
UPDATE = "write the record anew with: python -m tests.unit.test_defaults"


def configs(annotation: Any) -> Iterator[type[Config]]:
    """The configurations that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from configs(argument)


def defaults(config: type[Config], prefix: str = "") -> dict[str, Any]:
    """Every default by key path; a configuration inside is named by its class, since a field may hold several."""
    found: dict[str, Any] = {}
    for name, field in config.model_fields.items():
        if not field.is_required():
            found[prefix + name] = to_jsonable_python(field.get_default(call_default_factory=True))
        for inner in configs(field.annotation):
            found |= defaults(inner, f"{prefix}{name}({inner.__name__}).")
    return found


def current() -> dict[str, Any]:
    return {stage.name: {"version": stage.version, "defaults": defaults(stage.config)} for stage in STAGES}


def complaint(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """What to do about a stage that is not as it was recorded, or None."""
    if old == new:
        return None
    before, after = old["defaults"], new["defaults"]
    changed = [name for name in before if name not in after or after[name] != before[name]]
    if changed and old["version"] == new["version"]:
        return (
            f"the default of {', '.join(changed)} is another one now, and results made with the old one would still be "
            f"taken: raise the stage's version in stages/catalog.py, then {UPDATE}"
        )
    return f"its defaults or its version are not the recorded ones (no old result is at risk): {UPDATE}"


@pytest.mark.parametrize("name", sorted(current()))
def test_no_default_changes_without_a_new_version(name: str) -> None:
    recorded = json.loads(RECORD.read_text(encoding="utf-8"))
    assert name in recorded, f"the stage {name} is not in the record: {UPDATE}"
    found = complaint(recorded[name], current()[name])
    assert found is None, f"{name}: {found}"


def test_the_record_names_no_stage_that_is_gone() -> None:
    gone = set(json.loads(RECORD.read_text(encoding="utf-8"))) - set(current())
    assert not gone, f"{', '.join(gone)}: {UPDATE}"


def test_defaults_inside_other_configurations_are_guarded() -> None:
    found = current()
    assert found["train"]["defaults"]["lora(LoraConfig).rank"] == 16
    assert found["judge"]["defaults"]["judge(RulesJudge).must_contain"] == []


@pytest.mark.parametrize(
    ("version", "new", "advice"),
    [
        (1, {"beta": 0.2, "seed": 0}, "raise the stage's version"),
        (1, {"beta": 0.1}, "raise the stage's version"),
        (2, {"beta": 0.2, "seed": 0}, "write the record anew"),
        (1, {"beta": 0.1, "seed": 0, "new": 1}, "write the record anew"),
        (2, {"beta": 0.1, "seed": 0}, "write the record anew"),
    ],
)
def test_the_advice_fits_the_change(version: int, new: dict[str, Any], advice: str) -> None:
    old = {"version": 1, "defaults": {"beta": 0.1, "seed": 0}}
    found = complaint(old, {"version": version, "defaults": new})
    assert found is not None
    assert advice in found
    assert ("raise" in found) == ("raise" in advice)
    assert complaint(old, dict(old)) is None


if __name__ == "__main__":
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text(json.dumps(current(), indent=2, sort_keys=True) + "\n", encoding="utf-8")
