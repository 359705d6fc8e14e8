"""Tokens and a selection become shards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from stages.base import StageError, Summary
from stages.catalog import PREPARE
from stages.core.records import SELECTION as SELECTION_SCHEMA
from stages.core.records import TOKENS, content_id
from stages.core.tokens.pair import EncodedPair
from stages.data.badrows import after
from stages.data.config import PrepareConfig
from stages.data.encode import SLICE
from stages.data.shards import encoded_pairs
from stages.io.artifact import Artifact
from stages.io.filenames import SELECTION, SHARD, TOKENISED
from stages.io.tables import read_table
from tests import artifacts


def token_row(name: str, row: int, rejected: bool = True) -> dict[str, Any]:
    pair = EncodedPair(content_id(name), [1, 2], [3], [4, 5] if rejected else [], source=name)
    return {**vars(pair), "row": row}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def tokens(folder: Path, name: str, rows: list[int], **options: Any) -> Artifact:
    """An artifact of ``encode``: what it read as these rows could be tokenised."""
    parts = [
        [token_row(f"{name}:{row}", row, **options) for row in rows if row // SLICE == number]
        for number in range(max(rows) // SLICE + 1)
    ]
    return artifacts.of_rows(folder, name, TOKENISED, parts, TOKENS)


def selection(folder: Path, rows: list[dict[str, Any]], name: str = "selection") -> Artifact:
    defaults = {"probability": 1.0, "weight": 1.0, "task": "", "heldout": False}
    parts = [[{**defaults, **row} for row in rows]]
    return artifacts.of_rows(folder, name, SELECTION, parts, SELECTION_SCHEMA)


def shards(folder: Path, inputs: dict[str, Artifact], **config: Any) -> tuple[list[list[EncodedPair]], Summary]:
    made = artifacts.run(PREPARE, Path(mkdtemp(dir=folder)), PrepareConfig(**config), inputs)
    return [encoded_pairs(read_table(table.path)) for table in made.tables(SHARD)], dict(made.summary)


def test_shards_hold_at_most_so_many_rows_of_an_input_in_the_order_of_the_inputs(folder: Path) -> None:
    inputs = {"pairs.0": tokens(folder, "a", [0, 2, 3]), "pairs.1": tokens(folder, "b", [0, 1])}
    made, summary = shards(folder, inputs, shard_rows=2)
    assert [[pair.source for pair in shard] for shard in made] == [["a:0", "a:2"], ["a:3"], ["b:0", "b:1"]]
    assert summary == {"pairs": 5, "shards": 3, "tokens": 25, "unpaired": 0}


def test_a_selection_is_cut_like_the_other_inputs_and_comes_first(folder: Path) -> None:
    """Its tokens lie in parts of so many rows; a shard may need several of them, and of several files."""
    rows = [0, SLICE - 1, SLICE, 2 * SLICE + 5]
    chosen = [*({"input": 0, "row": row} for row in rows), {"input": 1, "row": 3}]
    inputs = {
        "selection": selection(folder, chosen), "selected.0": tokens(folder, "a", rows),
        "selected.1": tokens(folder, "b", [2, 3]), "pairs.0": tokens(folder, "own", [0]),
    }  # fmt: skip
    made, summary = shards(folder, inputs, shard_rows=3)
    names = [[pair.source for pair in shard] for shard in made]
    assert names == [["a:0", f"a:{SLICE - 1}", f"a:{SLICE}"], [f"a:{2 * SLICE + 5}", "b:3"], ["own:0"]]
    assert summary == {"pairs": 6, "shards": 3, "tokens": 30, "unpaired": 0}


def test_a_selected_row_has_the_label_of_the_selection(folder: Path) -> None:
    chosen = selection(
        folder,
        [
            {"input": 0, "row": 3, "probability": 0.75, "weight": 0.5, "task": "maths"},
            {"input": 1, "row": 0},
            {"input": 1, "row": 0},
        ],
    )
    inputs = {"selection": chosen, "selected.0": tokens(folder, "a", [0, 3]), "selected.1": tokens(folder, "b", [0])}
    ((first, *others),), _ = shards(folder, inputs)
    assert (first.source, first.probability, first.weight, first.task) == ("a:3", 0.75, 0.5, "maths")
    assert [pair.source for pair in others] == ["b:0", "b:0"]
    assert first.rejected_ids == [4, 5]


def test_a_selected_row_that_could_not_be_tokenised_is_left_out(folder: Path) -> None:
    chosen = selection(folder, [{"input": 0, "row": row} for row in (0, 1, 2, 9)])
    (made,), _ = shards(folder, {"selection": chosen, "selected.0": tokens(folder, "a", [1, 2])})
    assert [pair.source for pair in made] == ["a:1", "a:2"]


def test_held_out_rows_stand_in_shards_of_their_own(folder: Path) -> None:
    chosen = selection(folder, [{"input": 0, "row": row, "heldout": row == 1} for row in range(3)])
    inputs = {"selection": chosen, "selected.0": tokens(folder, "a", [0, 1, 2])}
    (train,), _ = shards(folder, inputs)
    (held,), _ = shards(folder, inputs, heldout=True)
    assert [pair.source for pair in train] == ["a:0", "a:2"]
    assert [pair.source for pair in held] == ["a:1"]


def test_later_rounds_take_a_fixed_share_of_what_was_given_and_of_earlier_pairs(folder: Path) -> None:
    chosen = selection(folder, [{"input": 0, "row": row} for row in range(200)])
    inputs = {
        "selection": chosen, "selected.0": tokens(folder, "a", list(range(200))),
        "pairs.0": tokens(folder, "own", [0]), "replay.0": tokens(folder, "old", list(range(100))),
    }  # fmt: skip
    made, _ = shards(folder, inputs, preferences=0.25, replay=0.5)
    taken = dict(zip(("a", "own", "old"), ([pair.source for pair in shard] for shard in made), strict=True))
    assert all(source.startswith(f"{name}:") for name, sources in taken.items() for source in sources)
    assert 25 < len(taken["a"]) < 75
    assert taken["own"] == ["own:0"]
    assert 25 < len(taken["old"]) < 75
    (more, *_), _ = shards(folder, inputs, preferences=0.5, replay=0.5)
    assert set(taken["a"]) < {pair.source for pair in more}


def past_ticks(folder: Path) -> dict[str, Artifact]:
    """Ticks of two files, of one, and one that found nothing; each names its files from 0 on."""
    first = [
        {"input": 0, "row": 0, "probability": 0.75, "task": "maths"}, {"input": 0, "row": 1, "heldout": True},
        {"input": 1, "row": 0}, {"input": 1, "row": 0},
    ]  # fmt: skip
    second = [{"input": 0, "row": row, "heldout": row % 10 == 0} for row in range(200)]
    return {
        "selection": selection(folder, [{"input": 0, "row": 0}, {"input": 0, "row": 1, "heldout": True}], "now"),
        "selected.0": tokens(folder, "new", [0, 1]),
        "past_selection.0": selection(folder, first, "first"), "past_selection.1": selection(folder, second, "second"),
        "past_selection.2": selection(folder, [], "third"),
        "past.0": tokens(folder, "a", [0, 1, 2]), "past.1": tokens(folder, "b", list(range(200))),
        "past.2": tokens(folder, "c", [0]),
    }  # fmt: skip


def test_what_earlier_ticks_trained_on_comes_again_with_its_label(folder: Path) -> None:
    made, summary = shards(folder, past_ticks(folder), replay=1, past_of=(0, 1, 0), source_of=(0,))
    now, first, second = made
    assert [pair.source for pair in now] == ["new:0"]
    assert [(pair.source, pair.probability, pair.task) for pair in first] == [
        ("a:0", 0.75, "maths"), ("c:0", 1.0, ""), ("c:0", 1.0, ""),
    ]  # fmt: skip
    assert [pair.source for pair in second] == [f"b:{row}" for row in range(200) if row % 10]
    assert summary == {"pairs": 184, "shards": 3, "tokens": 5 * 184, "unpaired": 0}


def test_of_earlier_ticks_a_fixed_share_is_taken(folder: Path) -> None:
    inputs, of = past_ticks(folder), (0, 1, 0)
    taken = [
        [pair.source for pair in shards(folder, inputs, replay=share, past_of=of)[0][-1]] for share in (0.3, 0.3, 0.6)
    ]
    assert taken[0] == taken[1]
    assert 25 < len(taken[0]) < 90
    assert set(taken[0]) < set(taken[2]) < {f"b:{row}" for row in range(200) if row % 10}
    alone = {"past_selection.0": inputs["past_selection.1"], "past.0": inputs["past.1"]}
    _, same = shards(folder, {**alone, "pairs.0": tokens(folder, "own", [0])}, replay=0.3, past_of=(0,))[0]
    assert [pair.source for pair in same] == taken[0]


def test_held_out_rows_of_earlier_ticks_stay_out(folder: Path) -> None:
    """They are neither trained on nor measured again."""
    made, summary = shards(folder, past_ticks(folder), heldout=True, replay=1, past_of=(0, 1, 0))
    assert [[pair.source for pair in shard] for shard in made] == [["new:1"]]
    assert summary["pairs"] == 1


def test_rows_that_an_earlier_tick_could_not_use_are_its_own_matter(folder: Path) -> None:
    inputs = past_ticks(folder) | {"past.1": encoded(folder, "d", list(range(200)), 1000, 800)}
    settings: dict[str, Any] = {"replay": 1, "source_of": (0,), "max_bad_share": 0.1}
    assert shards(folder, inputs, past_of=(0, 1, 0), **settings)[1]["pairs"] == 184
    with pytest.raises(StageError, match=r"preferences\.0: 4 of 5"):
        shards(folder, inputs | {"selected.0": encoded(folder, "e", [0], 5, 4)}, past_of=(0, 1, 0), **settings)
    with pytest.raises(ValueError, match="longer"):
        shards(folder, inputs, past_of=(0, 1), **settings)


def test_the_past_is_no_part_of_the_identity_where_there_is_none() -> None:
    assert PrepareConfig(past_of=()).identity() == {}
    assert PrepareConfig(past_of=(0,)).identity() == {"past_of": [0]}


def test_rows_with_one_answer_are_counted(folder: Path) -> None:
    inputs = {"pairs.0": tokens(folder, "a", [0]), "pairs.1": tokens(folder, "b", [0, 1], rejected=False)}
    assert shards(folder, inputs)[1]["unpaired"] == 2


def test_nothing_left_is_an_error_that_says_what_to_change(folder: Path) -> None:
    inputs = {"selection": selection(folder, [{"input": 0, "row": 5}]), "selected.0": tokens(folder, "a", [0])}
    with pytest.raises(StageError, match=r"max_length"):
        shards(folder, inputs)
    with pytest.raises(StageError, match=r"data\.heldout"):
        shards(folder, inputs, heldout=True)


def encoded(folder: Path, name: str, rows: list[int], read: int, bad: int) -> Artifact:
    return replace(tokens(folder, name, rows), summary={"read": read, "bad": bad, "bad_reasons": {f"why {name}": bad}})


def test_rows_that_could_not_be_tokenised_count_like_those_that_could_not_be_read(folder: Path) -> None:
    """By source: the two files of the first have 3 bad rows of 10."""
    chosen = selection(folder, [{"input": 0, "row": 0}, {"input": 2, "row": 0}])
    inputs = {
        "selection": chosen,
        "selected.0": encoded(folder, "a", [0], 5, 1), "selected.1": encoded(folder, "b", [0], 5, 2),
        "selected.2": encoded(folder, "c", [0], 100, 0), "pairs.0": encoded(folder, "d", [0], 4, 1),
    }  # fmt: skip
    of = (0, 0, 1)
    assert shards(folder, inputs, source_of=of, max_bad_share=0.3)[1]["pairs"] == 3
    with pytest.raises(StageError, match=r"preferences\.0: 3 of 10 rows .*why b \(2\), why a \(1\)"):
        shards(folder, inputs, source_of=of, max_bad_share=0.29)
    held = selection(folder / "again", [{"input": 0, "row": 0, "heldout": True}])
    given = {name: value for name, value in inputs.items() if name.startswith("selected")} | {"selection": held}
    assert shards(folder, given, source_of=of, max_bad_share=0.0, heldout=True)[1]["pairs"] == 1  # the others say it
    with pytest.raises(StageError, match="the round's own pairs: 1 of 4 rows"):
        shards(folder, {**inputs, "selected.1": inputs["selected.2"]}, source_of=of, max_bad_share=0.2)


def test_what_was_refused_adds_up_from_stage_to_stage() -> None:
    ingested = {"read": 10, "quarantined": 2, "quarantine_reasons": {"empty": 2}}
    own = {"quarantined": 3, "quarantine_reasons": {"too long": 2, "empty": 1}}
    assert after(ingested, 8, own).summary() == {"read": 10, "bad": 5, "bad_reasons": {"empty": 3, "too long": 2}}
    assert after({}, 8, own).read == 8
    many = after({"read": 100, "quarantined": 0}, 1000, {"quarantined": 30, "quarantine_reasons": {"too long": 30}})
    assert (many.read, many.bad) == (100, 3)  # ten pairs of a row
