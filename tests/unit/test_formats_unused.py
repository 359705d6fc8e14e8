"""Columns that nothing reads are named, and rows with images or sounds are refused unless the spec ignores them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.spec import load
from stages.core.errors import RowError
from stages.core.formats import RowParser, parse_prompt
from stages.core.formats.config import FormatConfig
from tests import specs
from tests.unit.test_formats_shapes import EXAMPLES

PAIR = {"prompt": "Q", "chosen": "A", "rejected": "B"}


def parser(**config: Any) -> RowParser:
    return RowParser(FormatConfig(**config))


@pytest.mark.parametrize(("shape", "row"), EXAMPLES)
def test_no_shape_has_columns_that_are_not_used(shape: str, row: dict[str, Any]) -> None:
    assert parser().unused(row) == []
    assert parser().unused({**row, "source": "x", "empty": None, "none": []}) == ["source"]
    assert parser(ignore=["source"]).unused({**row, "source": "x"}) == []


def test_mapped_and_common_columns_are_used() -> None:
    row = {"q": "Q", "good answer": "A", "answers": {"bad": "B"}, "weight": 2, "kind": "x", "system": "S", "id": 3}
    fields = {"prompt": "q", "chosen": "good answer", "rejected": "answers.bad"}
    assert parser(fields=fields).unused(row) == ["id"]
    labelled = {"prompt": "Q", "completion": "A", "hallucination": False}
    assert parser(fields={"label": "not hallucination"}).unused(labelled) == []


def own(row: dict[str, Any]) -> dict[str, Any]:
    return row


def test_a_function_of_the_users_may_read_any_column() -> None:
    assert parser(format={"use": f"{__name__}:own"}).unused({**PAIR, "p_chosen": 0.6}) == []


def test_counts_of_votes_are_votes() -> None:
    (pair,) = parser().pairs({**PAIR, "votes_chosen": 1, "votes_rejected": 2})
    assert pair.chosen[0]["content"] == "B"
    assert [vote["preference"] for vote in pair.votes] == [0.0, 1.0, 1.0]
    assert parser().unused({**PAIR, "votes_chosen": 1, "votes_rejected": 2}) == []


@pytest.mark.parametrize("name", ["images", "image", "audio", "video_url", "Picture", "image_path"])
def test_images_and_sounds_are_refused_unless_they_are_ignored(name: str) -> None:
    row = {**PAIR, name: ["file.png"]}
    with pytest.raises(RowError, match=rf"only text can be used; to leave it out, give the source ignore: \[{name}\]"):
        parser().pairs(row)
    assert parser(ignore=[name]).pairs(row) == parser().pairs(PAIR)
    for empty in ([], [None], None, ""):
        assert parser().pairs({**PAIR, name: empty}) == parser().pairs(PAIR)
    with pytest.raises(RowError, match="remove the column"):
        parse_prompt({"prompt": "Q", name: "file.png"})


def notes(folder: Path, extra: dict[str, Any], *overrides: str) -> tuple[str, ...]:
    file = specs.jsonl(folder / "pairs.jsonl", [{**row, **extra} for row in specs.pairs(4)])
    return load.source(str(file), overrides)[1]


def test_they_are_named_once_a_source_and_what_looks_like_a_label_is_a_warning(tmp_path: Path) -> None:
    extra = {"id": 1, "model": "x", "p_chosen": 0.7, "sample_weight": 2, "is_good": 1, "annotations": [1]}
    found = notes(tmp_path, extra)
    name = str(tmp_path / "pairs.jsonl")
    assert found[0] == (
        f"{name}: columns that are not used: annotations, id, is_good, model, p_chosen, sample_weight"
    )  # fmt: skip
    assert [note.partition("give the source ")[2] for note in found[1:]] == [
        "fields: {votes: annotations}, to leave it alone ignore: [annotations]",
        'format: {use: "module:function"}, to leave it alone ignore: [is_good]',
        "fields: {preference_probability: p_chosen}, to leave it alone ignore: [p_chosen]",
        "fields: {weight: sample_weight}, to leave it alone ignore: [sample_weight]",
    ]
    assert "first: pairs.jsonl:1" in found[1]
    assert notes(tmp_path, {}) == ()
    assert notes(tmp_path, extra, "ignore=[id, model, p_chosen, sample_weight, is_good, annotations]") == ()
