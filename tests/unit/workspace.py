"""A folder with a small sound spec, its data and a model folder that only looks like one."""

from __future__ import annotations

from pathlib import Path

from pipelines.spec import load
from pipelines.spec.problems import Problem, SpecError

SPEC = """\
name: tiny
policy: {model: model}
prompts: {train: train.jsonl, heldout: heldout.jsonl}
judge: {use: sentiment}
"""
"""Four lines, so that what a test adds stands on line 5."""

RAY = "kind: ray\naddress: http://127.0.0.1:1\nstore: /shared/store\n"
"""A cluster file; nothing answers there."""

OFFLINE = """\
name: tiny
policy: {model: model}
preferences: [pairs.jsonl]
"""


def make(folder: Path) -> Path:
    """Write the data and the model folder, and return ``folder``."""
    (folder / "train.jsonl").write_text('{"prompt": "Name a colour."}\n{"prompt": "Tell a joke."}\n')
    (folder / "heldout.jsonl").write_text('{"prompt": "How are you?"}\n')
    (folder / "pairs.jsonl").write_text('{"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away."}\n')
    model = folder / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (model / name).write_text("{}")
    (model / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def sent(folder: Path, name: str, cluster: str) -> Path:
    """A folder ``sent`` with the spec and what it names, beside a cluster file; returns ``folder``."""
    (folder / "sent").mkdir()
    spec(make(folder / "sent"))
    (folder / name).write_text(cluster)
    return folder


def spec(folder: Path, text: str | bytes = SPEC) -> Path:
    path = folder / "spec.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def loaded(folder: Path, text: str | bytes = SPEC, *overrides: str) -> load.Loaded:
    return load.load(str(spec(folder, text)), overrides)


def refused(folder: Path, text: str | bytes = SPEC, *overrides: str) -> tuple[Problem, ...]:
    """The problems found in a spec; fails when there are none."""
    try:
        load.load(str(spec(folder, text)), overrides)
    except SpecError as error:
        return error.problems
    raise AssertionError("the spec was taken")


def only(folder: Path, text: str | bytes = SPEC, *overrides: str) -> Problem:
    """The one problem found in a spec."""
    found = refused(folder, text, *overrides)
    assert len(found) == 1, found
    return found[0]
