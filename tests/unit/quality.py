"""Small records for the tests of the quality report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.core.records import PAIRS, PROMPTS, PreferencePair, Prompt, Vote, content_id, pair_row, prompt_row
from stages.io.artifact import Artifact
from stages.io.filenames import RECORDS
from tests.artifacts import of_rows


def pair(prompt: str, chosen: str, rejected: str, **rest: Any) -> PreferencePair:
    """A pair of plain texts; an empty answer is none. ``votes`` are preferences, of annotators by their place."""
    votes = tuple(Vote(annotator=f"a{i}", preference=v) for i, v in enumerate(rest.pop("votes", ())))
    answers = ([{"role": "assistant", "content": text}] if text else [] for text in (chosen, rejected))
    return PreferencePair([{"role": "user", "content": prompt}], *answers, votes=votes, **rest)  # type: ignore[arg-type]


def write(
    folder: Path, name: str, *parts: Sequence[PreferencePair], summary: Mapping[str, Any] | None = None
) -> Artifact:
    """The pairs of a user's file, as ``ingest`` leaves them. A name can be written only once."""
    return of_rows(folder, name, RECORDS, [[pair_row(item) for item in part] for part in parts], PAIRS, summary)


def write_prompts(folder: Path, name: str, prompts: Sequence[str], system: str = "") -> Artifact:
    rows = []
    for number, text in enumerate(prompts, 1):
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": text})
        rows.append(prompt_row(Prompt(content_id(messages), messages), f"held.jsonl:{number}"))  # type: ignore[arg-type]
    return of_rows(folder, name, RECORDS, [rows], PROMPTS)


def sentence(number: int, words: int = 40) -> str:
    """Words that no other sentence has."""
    return " ".join(f"w{number}x{index}" for index in range(words))
