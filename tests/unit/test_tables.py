from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from stages.core.errors import RowError
from stages.core.records import LOGPROBS, SHARD
from stages.core.tokens.pair import EncodedPair
from stages.data.shards import ShardData
from stages.io import filenames
from stages.io.artifact import Artifact
from stages.io.filenames import QUARANTINE
from stages.io.output import add_up
from stages.io.quarantine import Quarantine
from stages.io.tables import Rows, read_table, rows_of, write_table
from tests import artifacts
from tests.memory import random_pairs

SCHEMA = pa.schema([("name", pa.string()), ("value", pa.float32())])


def test_rows_come_back(tmp_path: Path) -> None:
    rows = [{"name": "é 🌍", "value": 0.5}, {"name": None, "value": 2.0}]
    assert write_table(tmp_path / "a.arrow", [pa.Table.from_pylist(rows, schema=SCHEMA)], SCHEMA) == 2
    assert read_table(tmp_path / "a.arrow").to_pylist() == rows
    assert read_table(tmp_path / "a.arrow").schema == SCHEMA


def test_no_rows_are_a_table_too(tmp_path: Path) -> None:
    assert write_table(tmp_path / "a.arrow", iter([]), SCHEMA) == 0
    assert read_table(tmp_path / "a.arrow").to_pylist() == []
    assert read_table(tmp_path / "a.arrow").schema == SCHEMA


def test_rows_of_several_tables_are_those_of_one_long_table(tmp_path: Path) -> None:
    parts = [[{"name": f"{part}:{row}", "value": 0.0} for row in range(size)] for part, size in enumerate((2, 0, 3, 1))]
    rows = [row for part in parts for row in part]
    tables = artifacts.of_rows(tmp_path, "records", "a.arrow", parts, SCHEMA).tables("a.arrow")
    long = Rows(tables)
    assert len(long) == len(rows)
    assert long.all().to_pylist() == list(rows_of(tables)) == rows
    for start in range(len(rows) + 1):
        for stop in range(start, len(rows) + 1):
            assert long.slice(start, stop).to_pylist() == rows[start:stop]
    assert long.take([5, 0, 2, 2, 1]).to_pylist() == [rows[at] for at in (5, 0, 2, 2, 1)]
    assert long.take([]).num_rows == 0


def test_tables_are_written_one_after_the_other_in_the_schemas_columns(tmp_path: Path) -> None:
    wide = pa.schema([("value", pa.float64()), ("extra", pa.int64()), ("name", pa.string())])
    tables = (pa.Table.from_pylist([{"name": f"{i}", "value": i / 2, "extra": i}], schema=wide) for i in range(3))
    assert write_table(tmp_path / "a.arrow", tables, SCHEMA) == 3
    assert read_table(tmp_path / "a.arrow").to_pylist() == [{"name": f"{i}", "value": i / 2} for i in range(3)]


def test_a_table_without_a_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="value"):
        write_table(tmp_path / "a.arrow", [pa.table({"name": ["a"]})], SCHEMA)


def test_quarantine_has_every_row_and_counts_the_reasons(tmp_path: Path) -> None:
    errors = [("a b.jsonl:3", RowError("", "not JSON")), ("a b.jsonl:4", RowError("chosen", "empty"))]
    quarantine = Quarantine(tmp_path)
    for place, error in [*errors, ("c.jsonl:1", RowError("chosen", "empty"))]:
        quarantine.add(Quarantine.row(place, error, "ä" * 500))
    quarantine.close()
    lines = (tmp_path / QUARANTINE).read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0]) == {
        "file": "a b.jsonl", "line": 3, "field": "", "reason": "not JSON", "excerpt": "ä" * 200,
    }  # fmt: skip
    assert len(lines) == 3
    assert quarantine.summary == {"quarantined": 3, "quarantine_reasons": {"chosen: empty": 2, "not JSON": 1}}


def test_rare_reasons_are_counted_together(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path)
    for number in range(80):
        quarantine.add(Quarantine.row(f"f.jsonl:{number + 1}", RowError("label", f"found {number}"), ""))
    quarantine.close()
    reasons = quarantine.summary["quarantine_reasons"]
    assert (len(reasons), reasons["other reasons"], quarantine.summary["quarantined"]) == (51, 30, 80)


def test_what_parts_have_counted_is_added_up() -> None:
    one = {"rows": 1, "quarantine_reasons": {f"a {n}": 1 for n in range(40)}}
    two = {"rows": 2, "quarantine_reasons": {f"b {n}": 2 for n in range(40)} | {"other reasons": 9}, "cut_off": 5}
    total = add_up([one, two])
    assert (total["rows"], total["cut_off"]) == (3, 5)
    reasons = total["quarantine_reasons"]
    assert (len(reasons), sum(reasons.values()), reasons["b 0"], reasons["other reasons"]) == (51, 129, 2, 39)
    assert add_up([]) == {}


def test_an_empty_quarantine_is_no_file(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path)
    quarantine.close()
    assert quarantine.summary == {"quarantined": 0, "quarantine_reasons": {}}
    assert not (tmp_path / QUARANTINE).exists()


def shards_of(folder: Path, pairs: Sequence[EncodedPair], sizes: Sequence[int]) -> Artifact:
    parts = [[asdict(pair) for pair in part] for part in cut(pairs, sizes)]
    return artifacts.of_rows(folder, "shards", filenames.SHARD, parts, SHARD)


def cut(rows: Sequence[Any], sizes: Sequence[int]) -> list[Sequence[Any]]:
    ends = list(accumulate(sizes))
    return [rows[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def write_shards(folder: Path, sizes: list[int], reverse: bool = False) -> tuple[Artifact, Artifact]:
    """Shards with some pairs each, and log-probabilities -i, -i - 0.5 and -i - 0.25 of the i-th pair, in parts of
    another size."""
    pairs = random_pairs(sum(sizes))
    scores = [
        {"pair_id": p.pair_id, "chosen": -float(i), "rejected": -i - 0.5, "mismatched": -i - 0.25}
        for i, p in enumerate(pairs)
    ]
    parts = [scores[::-1] if reverse else scores[:1], [] if reverse else scores[1:]]
    reference = artifacts.of_rows(folder, "reference", filenames.LOGPROBS, parts, LOGPROBS)
    return shards_of(folder, pairs, sizes), reference


def test_pairs_are_found_by_index_across_shards(tmp_path: Path) -> None:
    """Twelve shards, so that their order by number and by name could differ."""
    data = ShardData(*write_shards(tmp_path, [2] * 12))
    assert len(data) == 24
    indices = [23, 0, 7, 7, 2]
    assert data.pairs(indices) == [random_pairs(24)[i] for i in indices]
    reference = data.reference(indices)
    assert reference.dtype == torch.float32
    assert reference.tolist() == [
        [-23, 0, -7, -7, -2],
        [-23.5, -0.5, -7.5, -7.5, -2.5],
        [-23.25, -0.25, -7.25, -7.25, -2.25],
    ]


def test_without_a_reference_log_probabilities_are_zero(tmp_path: Path) -> None:
    shards, _ = write_shards(tmp_path, [3, 2])
    assert ShardData(shards).reference([4, 0]).tolist() == [[0, 0]] * 3


def test_a_prompt_is_given_the_answer_of_the_next_pair(tmp_path: Path) -> None:
    pairs = random_pairs(5)
    for found, index in zip(ShardData(*write_shards(tmp_path, [3, 2])).mismatched([2, 4, 0]), (2, 4, 0), strict=True):
        following = pairs[(index + 1) % 5]
        assert found.prompt_ids == pairs[index].prompt_ids
        assert found.chosen_ids == following.chosen_ids
        assert found.rejected_ids == []


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ("aab", [2, 2, 0]),
        ("abba", [1, 3, 3, 1]),
        ("abbaa", [1, 3, 3, 1, 1]),
        ("aaa", []),
        ("a", []),
        ("ab", [1, 0]),
    ],
)
def test_a_mismatched_answer_is_another_prompts(prompts: str, expected: list[int], tmp_path: Path) -> None:
    """Rows of one prompt stand together. The last of them take the first answer, going round, to another prompt."""
    pairs = [EncodedPair(f"{n}", [ord(prompt)], [n], [n, 0]) for n, prompt in enumerate(prompts)]
    data = ShardData(shards_of(tmp_path, pairs, [1] * len(pairs)))
    assert [found.chosen_ids for found in data.mismatched(range(len(pairs)))] == [[n] for n in expected]
    assert [found.chosen_ids for found in data.mismatched([len(pairs) - 1])] == [[n] for n in expected[-1:]]


def test_prompts_are_told_apart_by_all_their_tokens(tmp_path: Path) -> None:
    """Several rows a shard; prompts that begin alike, that are equally long, and an empty one."""
    generator = random.Random(0)
    kinds = [[], [7], [7, 8], [8, 7], [7, 7 << 8], [7, 8, 9]]
    pairs = [EncodedPair(f"{n}", kinds[generator.choice((n // 9, n)) % 6], [n], [n, 0]) for n in range(50)]
    data = ShardData(shards_of(tmp_path, pairs, [5, 0, 10, 1, 4, 5, 20, 0, 5]))
    found = [pair.chosen_ids[0] for pair in data.mismatched(range(50))]
    for n, pair in enumerate(pairs):
        following = [(n + step) % 50 for step in range(1, 50)]
        assert found[n] == next(other for other in following if pairs[other].prompt_ids != pair.prompt_ids)


def test_log_probabilities_of_other_pairs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not those of the shards"):
        ShardData(*write_shards(tmp_path, [3], reverse=True))
