from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stages.base import StageError, Summary
from stages.catalog import CURATE
from stages.core.records import PAIRS, PreferencePair, pair_row, prompt_key
from stages.data import seen
from stages.data.config import CurateConfig, FilterConfig, LabelsConfig, MixConfig
from stages.data.quality import filters
from stages.io.artifact import Table
from stages.io.filenames import ANNOTATORS, RECORDS, SELECTION
from stages.io.tables import stream_columns
from tests import artifacts
from tests.unit.quality import pair, write, write_prompts

Selected = list[dict[str, Any]]


def pairs(count: int, first: int = 0, **rest: Any) -> list[PreferencePair]:
    """Pairs with a prompt each."""
    return [pair(f"Question {n}?", f"good {n}", f"bad {n}", **rest) for n in range(first, first + count)]


class Stage:
    """Runs the stage on files of pairs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = 0

    def __call__(
        self,
        *files: Sequence[PreferencePair],
        prompts: Sequence[str] = (),
        seen: Sequence[Sequence[PreferencePair]] = (),
        summaries: Sequence[Summary] = (),
        **settings: Any,
    ) -> tuple[Selected, Summary]:
        self.runs += 1
        place = self.folder / str(self.runs)
        inputs = {
            f"pairs.{number}": write(place, f"in{number}", file, summary=summaries[number] if summaries else {})
            for number, file in enumerate(files)
        }
        if prompts:
            inputs["heldout"] = write_prompts(place, "prompts", prompts)
        inputs |= {f"seen.{number}": write(place, f"seen{number}", file) for number, file in enumerate(seen)}
        config = CurateConfig(**{"mix": (MixConfig(),), "source_of": (0,) * len(files), **settings})
        self.made = artifacts.run(CURATE, place, config, inputs)
        summary = dict(self.made.summary)
        json.dumps(summary, allow_nan=False)
        return artifacts.rows(self.made, SELECTION), summary


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def places(rows: Selected) -> list[tuple[int, int]]:
    return [(row["input"], row["row"]) for row in rows]


def test_by_default_every_pair_is_used_as_it_is(stage: Stage) -> None:
    first = [replace(pairs(1)[0], probability=0.7, weight=2.0), *pairs(2, 1)]
    rows, summary = stage(first, pairs(2, 10))
    assert places(rows) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert rows[0] == {"input": 0, "row": 0, "probability": 0.7, "weight": 2.0, "task": "", "heldout": False}
    assert {(row["probability"], row["weight"]) for row in rows[1:]} == {(1.0, 1.0)}
    totals = {"pairs": 5, "training": 5, "seen": 5, "heldout": 0, "dropped": {}}
    assert summary == {
        **totals, "filters": {"dropped": {"duplicates": 0}, "down_weighted": {}}, "sources": [{"task": "", **totals}],
    }  # fmt: skip
    assert not stage.made.has(ANNOTATORS)


def test_tasks_and_counts_go_by_source(stage: Stage) -> None:
    mix = (MixConfig(task="facts", weight=2), MixConfig(task="safety", max_pairs=2))
    rows, summary = stage(pairs(3), pairs(4, 10), pairs(1, 20), mix=mix, source_of=(0, 1, 0))
    assert Counter((row["input"], row["task"]) for row in rows) == {(0, "facts"): 6, (1, "safety"): 2, (2, "facts"): 2}
    assert places(rows) == sorted(places(rows))
    facts, safety = summary["sources"]
    assert facts == {"task": "facts", "pairs": 4, "training": 4, "seen": 8, "heldout": 0, "dropped": {}}
    assert safety == {
        "task": "safety", "pairs": 4, "training": 2, "seen": 2, "heldout": 0, "dropped": {"max_pairs": 2},
    }  # fmt: skip
    assert (summary["pairs"], summary["training"], summary["seen"]) == (8, 6, 10)


def test_a_weight_below_one_leaves_pairs_out_and_says_so(stage: Stage) -> None:
    rows, summary = stage(pairs(100), mix=(MixConfig(weight=0.3),))
    assert 15 < len(rows) < 45
    assert summary["dropped"] == {"weight": 100 - len(rows)}


def test_a_prompt_is_on_one_side_with_all_its_pairs(stage: Stage) -> None:
    files = [pairs(100), [pair(f"question  {n}?", f"fine {n}", f"poor {n}") for n in range(100)]]
    rows, summary = stage(*files, heldout=0.3)
    sides: dict[str, set[bool]] = {}
    for row in rows:
        sides.setdefault(prompt_key(files[row["input"]][row["row"]].prompt), set()).add(row["heldout"])
    assert len(sides) == 100
    assert {len(side) for side in sides.values()} == {1}
    assert 15 < sum(True in side for side in sides.values()) < 45
    assert summary["heldout"] == sum(row["heldout"] for row in rows)
    assert summary["training"] == 200 - summary["heldout"]


def test_added_data_moves_no_prompt(stage: Stage) -> None:
    few, _ = stage(pairs(60), heldout=0.3)
    many, _ = stage(pairs(60), pairs(200, 60), heldout=0.3)
    assert [row for row in many if row["input"] == 0] == few


def test_held_out_pairs_are_seen_once_whatever_the_weight(stage: Stage) -> None:
    plain, _ = stage(pairs(80), heldout=0.4)
    held = [row for row in plain if row["heldout"]]
    for weight in (0.2, 3.0):
        rows, summary = stage(pairs(80), heldout=0.4, mix=(MixConfig(weight=weight),))
        assert [row for row in rows if row["heldout"]] == held
        assert summary["seen"] == len(rows) - len(held)


def test_a_cap_is_for_trained_and_held_out_pairs_together(stage: Stage) -> None:
    rows, _ = stage(pairs(200), heldout=0.5, mix=(MixConfig(max_pairs=50, weight=2),))
    assert len(set(places(rows))) == 50
    assert 10 < sum(row["heldout"] for row in rows) < 40


def test_pairs_that_are_left_out_take_no_place_under_a_cap(stage: Stage) -> None:
    ties = [replace(each, probability=0.5) for each in pairs(50)]
    rows, summary = stage(ties + pairs(10, 50), mix=(MixConfig(max_pairs=10),))
    assert [row["row"] for row in rows] == list(range(50, 60))
    assert summary["dropped"] == {"ties": 50}


def test_the_users_held_out_prompts_are_neither_trained_on_nor_held_out_again(stage: Stage) -> None:
    for share in (0.0, 0.9):
        rows, summary = stage(pairs(20), prompts=[" QUESTION 3? ", "question 5?", "Another?"], heldout=share)
        assert {3, 5} == set(range(20)) - {row["row"] for row in rows}
        assert summary["dropped"] == {"heldout_prompts": 2}


def test_votes_decide_and_the_order_of_the_answers_stays(stage: Stage) -> None:
    voted = [
        pair("a?", "x", "y", votes=(1.0, 1.0, 0.0, None)),
        pair("b?", "x", "y", votes=(0.0, 0.0, 0.5)),
        pair("c?", "x", "y", probability=0.9),
    ]
    rows, summary = stage(voted)
    assert [row["probability"] for row in rows] == [pytest.approx(2 / 3), pytest.approx(1 / 6), 0.9]
    assert [row["row"] for row in rows] == [0, 1, 2]
    table = json.loads(stage.made.path(ANNOTATORS).read_text())
    assert table == summary["annotators"]
    assert table[0] == {
        "source": 0, "task": "", "annotator": "a0", "votes": 2, "ties": 0, "compared": 1, "agreement": 1.0,
    }  # fmt: skip
    assert [each["votes"] for each in table] == [2, 2, 2, 0]  # the last one abstained


def test_too_few_votes_and_ties(stage: Stage) -> None:
    voted = [
        pair("a?", "x", "y", votes=(1.0, None, None)),
        pair("b?", "x", "y", votes=(1.0, 0.0)),
        pair("c?", "x", "y", votes=(None, None)),
        pair("d?", "x", "y", votes=(1.0, 1.0)),
        pair("e?", "x", "y", probability=0.5),
        pair("f?", "x", "y"),
    ]
    rows, summary = stage(voted)
    assert [row["row"] for row in rows] == [0, 3, 5]
    assert summary["dropped"] == {"too_few_votes": 1, "ties": 2}
    rows, summary = stage(voted, labels=LabelsConfig(min_votes=2, ties="keep"))
    assert [(row["row"], row["probability"]) for row in rows] == [(1, 0.5), (3, 1.0), (4, 0.5), (5, 1.0)]
    assert summary["dropped"] == {"too_few_votes": 2}


def voted(count: int = 60) -> list[PreferencePair]:
    """Pairs with the votes of five, of whom the last two know nothing; three answers to every prompt."""
    generator = np.random.default_rng(0)
    made = []
    for n in range(count):
        prompt, (one, two) = n // 3, [(0, 1), (1, 2), (0, 2)][n % 3]
        right = generator.random(5) < (0.95, 0.9, 0.9, 0.5, 0.5)
        made.append(pair(f"Question {prompt}?", f"answer {one}", f"answer {two}", votes=right.astype(float).tolist()))
    return made


@pytest.mark.parametrize("aggregate", ["share", "dawid_skene", "bradley_terry"])
def test_labels_do_not_depend_on_files_or_their_order(stage: Stage, aggregate: Any) -> None:
    data, settings = voted(), {"labels": LabelsConfig(aggregate=aggregate, ties="keep")}
    rows, summary = stage(data, **settings)
    together = {data[row["row"]].pair_id: row["probability"] for row in rows}
    assert len(together) == len(data)
    order = np.random.default_rng(1).permutation(len(data))
    files = [[data[n] for n in part] for part in np.array_split(order, 3)]
    rows, split = stage(*files, **settings)
    apart = {files[row["input"]][row["row"]].pair_id: row["probability"] for row in rows}
    assert apart == pytest.approx(together, abs=1e-6)
    assert split["annotators"] == summary["annotators"]


def test_models_of_annotators_and_of_answers_reach_the_pairs(stage: Stage) -> None:
    shares, _ = stage(voted(), labels=LabelsConfig(ties="keep"))
    rows, summary = stage(voted(), labels=LabelsConfig(aggregate="dawid_skene", ties="keep"))
    good, bad = np.split(np.array([each["accuracy"] for each in summary["annotators"]]), [3])
    assert good.min() > bad.max() + 0.1
    assert np.mean([row["probability"] for row in rows]) > np.mean([row["probability"] for row in shares]) + 0.1
    rows, summary = stage(voted(), labels=LabelsConfig(aggregate="bradley_terry", ties="keep"))
    assert "accuracy" not in summary["annotators"][0]
    p = np.array([row["probability"] for row in rows]).reshape(-1, 3)
    odds = p / (1 - p)
    np.testing.assert_allclose(odds[:, 0] * odds[:, 1], odds[:, 2], rtol=1e-6)  # one strength an answer


def test_votes_are_aggregated_within_their_source(stage: Stage) -> None:
    """The same name in another source is another annotator."""
    rows, summary = stage(voted(30), voted(30), mix=(MixConfig(task="one"), MixConfig(task="two")), source_of=(0, 1),
                          filters=FilterConfig(duplicates="keep"))  # fmt: skip
    assert [(each["source"], each["task"]) for each in summary["annotators"]] == [(0, "one")] * 5 + [(1, "two")] * 5
    assert {each["votes"] for each in summary["annotators"]} == {30}
    assert len({row["task"] for row in rows}) == 2


def test_the_summary_names_the_busiest_annotators_only(stage: Stage) -> None:
    one = pair("a?", "x", "y", votes=(1.0,) * 30)
    _, summary = stage([one, pair("b?", "x", "y", votes=(None,) * 29 + (1.0,))])
    assert len(summary["annotators"]) == 20
    assert summary["annotators"][0]["annotator"] == "a29"
    assert summary["annotators_in_all"] == len(json.loads(stage.made.path(ANNOTATORS).read_text())) == 30


def test_filters_drop_and_weigh_down(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Fixed:
        def __init__(self, config: FilterConfig, heldout: Sequence[Table]) -> None:
            seen.append((config, [table.name for table in heldout]))

        def examine(self, files: Sequence[Sequence[Table]], progress: Any, left_out: Any) -> filters.Found:
            factors = [np.array([1, 0, 0.5], np.float32), np.array([0.25, 0], np.float32)]
            return filters.Found(factors, {"languages": 2}, {"near_duplicates": 2})

    monkeypatch.setattr(filters, "Filters", Fixed)
    asked = FilterConfig(near_duplicates=0.5, languages=("en",))
    first = [replace(each, weight=weight) for each, weight in zip(pairs(3), (2.0, 1.0, 3.0), strict=True)]
    second = [replace(each, probability=0.5) for each in pairs(2, 3)]
    rows, summary = stage(first, second, filters=asked, prompts=["none"], labels=LabelsConfig(ties="keep"))
    assert [(*place, row["weight"]) for place, row in zip(places(rows), rows, strict=True)] == [
        (0, 0, 2.0), (0, 2, 1.5), (1, 0, 0.25),
    ]  # fmt: skip
    assert summary["dropped"] == {"filters": 2}
    assert summary["filters"] == {"dropped": {"languages": 2}, "down_weighted": {"near_duplicates": 2}}
    assert seen == [(asked, [RECORDS])]
    rows, summary = stage(first, second, filters=asked)
    assert summary["dropped"] == {"filters": 2, "ties": 1}  # the tie that a filter dropped is counted once


def test_a_pair_of_no_weight_is_left_out(stage: Stage) -> None:
    rows, summary = stage([replace(pairs(1)[0], weight=0.0), *pairs(1, 1)])
    assert [row["row"] for row in rows] == [1]
    assert summary["dropped"] == {"zero_weight": 1}


def test_exact_duplicates_are_dropped_by_the_real_filters(stage: Stage) -> None:
    rows, summary = stage(pairs(3), pairs(4))
    assert places(rows) == [(0, 0), (0, 1), (0, 2), (1, 3)]
    assert summary["filters"]["dropped"] == {"duplicates": 3}
    assert [each["dropped"] for each in summary["sources"]] == [{"filters": 3}]


def test_nothing_left_says_why(stage: Stage) -> None:
    with pytest.raises(StageError, match="no pair that can be used"):
        stage([], [])
    with pytest.raises(StageError, match="no pair that can be used"):
        stage()
    files = [*pairs(1), *pairs(1), replace(pairs(1, 1)[0], probability=0.5), *pairs(1, 2)]
    with pytest.raises(StageError) as error:
        stage(files, prompts=["question 2?", "question 0?"])
    assert str(error.value) == (
        "no pair is left to train on: of 4, held out 0, left out: heldout_prompts 2, ties 1, duplicates 1. "
        "docs/mixtures.md says which key each reason belongs to"
    )
    with pytest.raises(StageError, match="of 30, held out 30"):
        stage(pairs(30), heldout=1 - 2**-53)


def test_of_a_file_that_grew_only_what_is_new_is_selected(stage: Stage) -> None:
    """Wherever the old rows stand, and in whichever of the earlier files."""
    grown = [*pairs(2, 10), *pairs(4), *pairs(3, 20), *pairs(1, 30), *pairs(2, 10)]
    rows, summary = stage(grown, pairs(2, 40), seen=[pairs(4), [], pairs(1, 30) + pairs(1, 99)])
    assert places(rows) == [(0, 0), (0, 1), (0, 6), (0, 7), (0, 8), (1, 0), (1, 1)]
    assert summary["dropped"] == {"seen_before": 5, "filters": 2}  # a new pair that is repeated is still one
    assert summary["filters"]["dropped"] == {"duplicates": 2}
    assert (summary["pairs"], summary["training"]) == (14, 7)


def test_what_was_seen_counts_under_no_other_reason_and_takes_no_place(stage: Stage) -> None:
    old = [
        *pairs(2), *pairs(2),  # would be duplicates
        pair("Long?", "word " * 50, "bad"), pair("Tie?", "x", "y", probability=0.5),
        pair("Votes?", "x", "y", votes=(1.0,)), replace(pairs(1, 5)[0], weight=0.0), *pairs(1, 7),
    ]  # fmt: skip
    settings: dict[str, Any] = {
        "filters": FilterConfig(max_words=40), "labels": LabelsConfig(min_votes=2), "prompts": ["question 7?"],
        "mix": (MixConfig(max_pairs=5),),
    }  # fmt: skip
    rows, summary = stage(old + pairs(5, 50), seen=[old], **settings)
    assert [row["row"] for row in rows] == [9, 10, 11, 12, 13]
    assert {row["weight"] for row in rows} == {1.0}
    assert summary["dropped"] == summary["sources"][0]["dropped"] == {"seen_before": 9}
    assert summary["filters"]["dropped"] == {"duplicates": 0, "max_words": 0}


def test_a_tick_that_finds_nothing_new_selects_nothing(stage: Stage) -> None:
    for files, before in (([pairs(3), pairs(2, 5)], [pairs(9)]), ([[]], [pairs(1)]), ([], [[]])):
        rows, summary = stage(*files, seen=before)
        assert rows == []
        assert (summary["training"], summary["heldout"]) == (0, 0)
        assert stage.made.has(SELECTION)
    held, summary = stage(pairs(3) + pairs(5, 10), seen=[pairs(3)], heldout=1 - 2**-53)
    assert [(row["row"], row["heldout"]) for row in held] == [(n, True) for n in range(3, 8)]
    assert summary["training"] == 0
    bad: Summary = {"read": 3, "quarantined": 3, "quarantine_reasons": {"no JSON": 3}}
    with pytest.raises(StageError, match="3 of 3 rows are in quarantine"):
        stage([], seen=[pairs(1)], summaries=(bad,), max_bad_share=0.5)


def test_of_what_was_seen_the_ids_alone_are_read(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = write(tmp_path, "earlier", pairs(3), [], pairs(2, 3))
    parts, read = {part.place for part in earlier.parts}, []

    def stream(tables: Sequence[Table], columns: Sequence[str]) -> Any:
        read.extend((table.part.place, tuple(columns)) for table in tables)
        return stream_columns(tables, columns)

    monkeypatch.setattr(seen, "stream_columns", stream)
    found = seen.pairs_seen([write(tmp_path, "now", pairs(6, 2)).tables(RECORDS)], earlier.tables(RECORDS))
    assert found.tolist() == [True, True, True, False, False, False]
    assert {columns for place, columns in read if place in parts} == {("pair_id",)}


def test_too_much_quarantine_fails_with_the_reasons(stage: Stage) -> None:
    good: Summary = {"read": 3, "rows": 3, "quarantined": 0, "quarantine_reasons": {}}
    bad: Summary = {"read": 10, "rows": 5, "skipped": 1, "quarantined": 4, "quarantine_reasons": {}}
    bad["quarantine_reasons"] = {"chosen: missing": 3, "no JSON": 1}
    settings: dict[str, Any] = {"mix": (MixConfig(), MixConfig(task="facts")), "source_of": (0, 1)}
    rows, _ = stage(pairs(3), pairs(5, 3), summaries=(good, bad), max_bad_share=0.4, **settings)
    assert len(rows) == 8
    with pytest.raises(StageError, match=r"preferences\.1 \(task facts\): 4 of 10 .* chosen: missing \(3\), no JSON"):
        stage(pairs(3), pairs(5, 3), summaries=(good, bad), max_bad_share=0.39, **settings)


def test_many_parts_and_batches_of_records_are_one_file(stage: Stage, tmp_path: Path) -> None:
    """Files are written in parts, and parts in batches; a row's number counts over them."""
    data = voted(30)
    batches = [
        pa.Table.from_pylist([pair_row(each) for each in data[n : n + 7]], schema=PAIRS) for n in range(0, 30, 7)
    ]
    out = artifacts.output(tmp_path, "records")
    for name, some in (("00000", batches[:3]), ("00001", []), ("00002", batches[3:])):
        with out.part(name) as part:
            part.table(RECORDS, some, PAIRS)
    for aggregate in ("share", "bradley_terry"):
        settings = {"labels": {"aggregate": aggregate}, "heldout": 0.3}
        config = CurateConfig.model_validate({"mix": [{}], "source_of": [0], **settings})
        made = artifacts.run(CURATE, tmp_path, config, {"pairs.0": artifacts.made(out)}, name=aggregate)
        whole, _ = stage(data, labels=LabelsConfig(aggregate=aggregate), heldout=0.3)  # type: ignore[arg-type]
        assert artifacts.rows(made, SELECTION) == whole
