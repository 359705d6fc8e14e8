"""Prompts that earlier ticks of a schedule had are left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from stages.base import StageError
from stages.catalog import INGEST
from stages.data.config import IngestConfig
from stages.io.artifact import Artifact, UserFile
from stages.io.filenames import RECORDS
from tests import artifacts, specs


def ingest(folder: Path, rows: Sequence[Any], *seen: Artifact, kind: Any = "prompts") -> Artifact:
    name = f"tick{len(list(folder.glob('*.jsonl')))}"
    path = specs.jsonl(folder / f"{name}.jsonl", rows)
    inputs: dict[str, Any] = {"files.0": UserFile(str(path), path.name)}
    inputs |= {f"seen.{number}": each for number, each in enumerate(seen)}
    return artifacts.run(INGEST, folder, IngestConfig(kind=kind), inputs, name=name)


def asked(made: Artifact) -> list[str]:
    return [row["messages"][-1]["content"] for row in artifacts.rows(made, RECORDS)]


def questions(*numbers: int) -> list[dict[str, str]]:
    return [{"prompt": f"Question {number}?"} for number in numbers]


def test_of_a_file_that_grew_only_new_prompts_are_taken(tmp_path: Path) -> None:
    """An old one stays old however it is written, and a repetition of it is no mistake; one of a new prompt is."""
    first = ingest(tmp_path, questions(1, 2))
    second = ingest(tmp_path, questions(3))
    assert "seen" not in first.summary
    grown = [*questions(1, 4, 2), {"prompt": " QUESTION 3? "}, *questions(5, 1, 1, 5), {"prompt": ""}]
    made = ingest(tmp_path, grown, first, second)
    assert asked(made) == ["Question 4?", "Question 5?"]
    assert "prompt: repeats an earlier prompt; first at tick2.jsonl:5" in made.summary["quarantine_reasons"]
    assert {name: made.summary[name] for name in ("read", "rows", "seen", "quarantined")} == {
        "read": 9, "rows": 2, "seen": 5, "quarantined": 2,
    }  # fmt: skip


def test_a_tick_without_what_was_before_counts_as_it_did(tmp_path: Path) -> None:
    made = ingest(tmp_path, questions(1, 2))
    assert made.summary == {"read": 2, "rows": 2, "quarantined": 0, "quarantine_reasons": {}}


def test_no_new_prompt_is_no_error(tmp_path: Path) -> None:
    first = ingest(tmp_path, questions(1, 2))
    made = ingest(tmp_path, questions(2, 1), first)
    assert artifacts.rows(made, RECORDS) == []
    assert (made.summary["rows"], made.summary["seen"], made.summary["quarantined"]) == (0, 2, 0)
    nothing = ingest(tmp_path, [], first, made)
    assert (nothing.summary["rows"], nothing.summary["seen"]) == (0, 0)
    with pytest.raises(StageError, match="no usable row"):
        ingest(tmp_path, [])


def test_pairs_are_not_compared_here(tmp_path: Path) -> None:
    first = ingest(tmp_path, specs.pairs(1), kind="pairs")
    assert "seen" not in first.summary
    with pytest.raises(ValueError, match="only prompts"):
        ingest(tmp_path, specs.pairs(2), first, kind="pairs")
