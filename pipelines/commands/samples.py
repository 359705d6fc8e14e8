"""Answers of a run side by side, for ``rondo show --samples``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from pipelines.run.store import ArtifactStore
from pipelines.spec.problems import printable


def lines(store: ArtifactStore, record: Mapping[str, Any], count: int) -> Iterator[str]:
    """The ``count`` held-out prompts that the run's last measured round does worst on, with all answers to them."""
    measured = [row for row in record["rounds"] if row.get("samples")]
    data = store.store.read(measured[-1]["samples"]) if measured else None
    if data is None:
        yield "no answers to held-out prompts"
        return
    rows = (json.loads(line) for line in data.decode().splitlines())
    for row in islice(rows, count):
        yield ""
        yield f"prompt {row['prompt_id']}, round {measured[-1]['round']}{_rates(row['win_rate'])}"
        for message in row["prompt"]:
            yield from _text(message["role"], message["content"])
        for name, answers in row["answers"].items():
            for answer in answers:
                score = f" {answer['score']:.2f}" if "score" in answer else ""
                yield from _text(f"{'new' if name == 'policy' else name}{score}", answer["text"])


def _rates(rates: Mapping[str, float]) -> str:
    return "".join(f", wins {rate:.2f} against {name}" for name, rate in rates.items())


def _text(title: str, text: str) -> Iterator[str]:
    first, *rest = printable(text).strip().split("\n")
    yield f"  {title:>12} | {first}"
    yield from (f"  {'':>12} | {line}" for line in rest)
