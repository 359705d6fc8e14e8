"""Small records files for the tests of the quality report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.core.records import PAIRS, PROMPTS, PreferencePair, Prompt, Vote, content_id, pair_row, prompt_row
from stages.io.tables import write_rows


def pair(prompt: str, chosen: str, rejected: str, **rest: Any) -> PreferencePair:
    """A pair of plain texts; an empty answer is none. ``votes`` are preferences, of annotators by their place."""
    votes = tuple(Vote(annotator=f"a{i}", preference=v) for i, v in enumerate(rest.pop("votes", ())))
    answers = ([{"role": "assistant", "content": text}] if text else [] for text in (chosen, rejected))
    return PreferencePair([{"role": "user", "content": prompt}], *answers, votes=votes, **rest)  # type: ignore[arg-type]


def write(path: Path, pairs: Sequence[PreferencePair]) -> Path:
    write_rows(path, [pair_row(item) for item in pairs], PAIRS)
    return path


def write_prompts(path: Path, prompts: Sequence[str], system: str = "") -> Path:
    rows = []
    for number, text in enumerate(prompts, 1):
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": text})
        rows.append(prompt_row(Prompt(content_id(messages), messages), f"held.jsonl:{number}"))  # type: ignore[arg-type]
    write_rows(path, rows, PROMPTS)
    return path


def sentence(number: int, words: int = 40) -> str:
    """Words that no other sentence has."""
    return " ".join(f"w{number}x{index}" for index in range(words))
