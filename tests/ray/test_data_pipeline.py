"""From files of many shapes to shards, through the steps of a plan on a real local Ray."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pipelines.plan import rounds
from pipelines.run.console import Lines
from pipelines.run.runner import Runner
from pipelines.run.store import ArtifactStore
from pipelines.spec import load
from stages.core.tokens.pair import EncodedPair
from stages.data.shards import encoded_pairs
from stages.io.artifact import Artifact
from stages.io.filenames import SHARD
from stages.io.tables import read_table
from tests import specs

STAGES = ("materialise", "ingest", "curate", "encode", "prepare")


@pytest.fixture
def spec(tmp_path: Path, model_dir: Path) -> Path:
    """A folder with three files of three shapes and containers, and a source with votes."""
    rows, data = specs.pairs(90), tmp_path / "data"
    data.mkdir()
    specs.jsonl(data / "a.jsonl", [*rows[:30], "{broken"])
    with gzip.open(data / "b.csv.gz", "wt", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "chosen", "rejected"])
        writer.writerows([row["prompt"], row["chosen"], row["rejected"]] for row in rows[30:60])
    ranked = [{"prompt": r["prompt"], "responses": [r["rejected"], r["chosen"]], "scores": [1, 2]} for r in rows[60:]]
    pq.write_table(pa.Table.from_pylist(ranked), data / "c.parquet")
    votes = [{"prompt": f"Vote {i}", "chosen": "yes", "rejected": "no", "votes": [1, 1, i % 2]} for i in range(10)]
    specs.jsonl(tmp_path / "votes.jsonl", votes)
    sources = [{"path": "data", "task": "stones"}, {"path": "votes.jsonl", "task": "votes", "weight": 2}]
    return specs.write(
        tmp_path,
        {"name": "data", "policy": {"model": str(model_dir)}, "preferences": sources, "data": {"heldout": 0.2}},
    )


def run(spec: Path, store: ArtifactStore) -> tuple[dict[str, bool], dict[str, Any]]:
    """Run the steps up to the shards; returns which were found committed, and the artifacts by key."""
    loaded = load.load(str(spec))
    steps = [step for step in rounds.plan(loaded.spec, spec.parent).steps if step.stage.name in STAGES]
    results = Runner(store, Lines(Console(quiet=True), 0), lambda: None).run(steps)
    return (
        {result.step.key: result.cached for result in results},
        {result.step.key: result.artifact for result in results},
    )


def pairs(shards: Artifact) -> list[EncodedPair]:
    return [pair for table in shards.tables(SHARD) for pair in encoded_pairs(read_table(table.path))]


def test_files_of_many_shapes_become_shards_and_only_new_ones_are_read(
    cluster: None, spec: Path, tmp_path: Path
) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    _, made = run(spec, store)
    train, held = pairs(made["round-1/prepare"]), pairs(made["preferences/heldout"])
    stones = [pair for pair in train if pair.task == "stones"]
    voted = [pair for pair in train if pair.task == "votes"]
    assert len(stones) + sum(pair.task == "stones" for pair in held) == 90
    assert len(voted) / 2 + sum(pair.task == "votes" for pair in held) == 10
    assert {round(pair.probability, 6) for pair in voted} == {0.666667, 1.0}
    assert 5 <= len(held) <= 40
    assert not {tuple(pair.prompt_ids) for pair in train} & {tuple(pair.prompt_ids) for pair in held}
    places = [pair.source for pair in train]
    assert [p for p in ("a.jsonl:1", "b.csv.gz:2", "c.parquet:group 0 row 1") if p in places]
    assert [name.partition(":")[0] for name in dict.fromkeys(places)] == sorted(
        (name.partition(":")[0] for name in dict.fromkeys(places)),
        key=["a.jsonl", "b.csv.gz", "c.parquet", "votes.jsonl"].index,
    )
    bad = json.loads(made["preferences/a.jsonl"].path("quarantine.jsonl").read_text())
    assert (bad["file"], bad["line"]) == ("a.jsonl", 31)
    specs.jsonl(spec.parent / "data" / "d.jsonl", specs.pairs(95)[90:])
    cached, _ = run(spec, store)
    assert {key for key, found in cached.items() if not found} == {
        "preferences/d.jsonl", "preferences/d.jsonl/encode", "preferences/curate", "round-1/prepare",
        "preferences/heldout",
    }  # fmt: skip
