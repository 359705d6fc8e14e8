"""Small specs and data for tests, written to a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

WORDS = ("river", "stone", "cloud", "lamp", "bread", "violin", "winter", "orchard", "harbour", "pencil", "candle")


def jsonl(path: Path, rows: Sequence[Mapping[str, Any] | str]) -> Path:
    """Write rows (text is written as it is) one per line."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def pairs(count: int) -> list[dict[str, Any]]:
    """Distinct pairs of varied lengths: the chosen answers praise, the rejected ones complain."""
    return [
        {
            "prompt": f"Tell me about the {WORDS[i % len(WORDS)]} number {i}.",
            "chosen": f"The {WORDS[i % len(WORDS)]} is lovely" + " and bright" * (i % 5) + ".",
            "rejected": f"The {WORDS[i % len(WORDS)]} is awful" + " and dull" * (i % 3) + ".",
        }
        for i in range(count)
    ]


def prompts(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"prompt": f"Say something about {WORDS[i % len(WORDS)]} {i}."} for i in range(start, start + count)]


def write(folder: Path, spec: Mapping[str, Any]) -> Path:
    """Write ``spec`` as ``spec.yaml`` in ``folder``."""
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(dict(spec), sort_keys=False), encoding="utf-8")
    return path


def offline(folder: Path, model: Path, count: int = 24, **sections: Any) -> Path:
    """A spec that trains on given pairs, fp32 and fast, with some sections replaced."""
    jsonl(folder / "pairs.jsonl", pairs(count))
    train = {"learning_rate": 1e-3, "batch_size": 4, "epochs": 2, "precision": "fp32"}
    spec = {"name": "offline", "policy": {"model": str(model)}, "preferences": ["pairs.jsonl"], "train": train}
    return write(folder, {**spec, **sections})
