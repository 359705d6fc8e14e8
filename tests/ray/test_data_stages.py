"""ingest, prepare, reference and rollout on a real local Ray."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipelines.run.execute import reason
from stages.base import Resources, StageError
from stages.catalog import ENCODE, INGEST, MATERIALISE, PREPARE, REFERENCE, ROLLOUT
from stages.data.config import EncodeConfig, IngestConfig, PrepareConfig
from stages.data.shards import ShardData, encoded_pairs
from stages.generate.config import RolloutConfig
from stages.io.artifact import Artifact
from stages.io.context import StageContext
from stages.io.filenames import RECORDS, SHARD
from stages.io.parts import run_parts, slices
from stages.io.tables import read_table
from stages.policy.config import MaterialiseConfig
from stages.policy.load import load_encoder, load_model
from stages.score.config import ReferenceConfig
from tests import artifacts, specs
from tests.artifacts import rows as rows_in
from tests.memory import score
from tests.ray import processes

Execute = Callable[..., Artifact]


@pytest.fixture
def policy(execute: Execute, model_dir: Path) -> Artifact:
    return execute(MATERIALISE, MaterialiseConfig(), {"source": model_dir})


def test_ingest_keeps_order_and_quarantines_what_it_cannot_use(execute: Execute, tmp_path: Path) -> None:
    good = specs.pairs(2500)
    rows = [*good[:1500], "{broken", {"prompt": "p", "chosen": "same", "rejected": "same"}, *good[1500:], "[1]"]
    first = specs.jsonl(tmp_path / "first.jsonl", rows)
    second = specs.jsonl(tmp_path / "second.jsonl", ["\ufeff" + json.dumps(specs.pairs(1)[0]), "", {"prompt": ""}])
    made = execute(INGEST, IngestConfig(kind="pairs"), {"files.0": first, "files.1": second})
    records = rows_in(made, RECORDS)
    assert made.summary["rows"] == len(records) == 2501
    assert [r["prompt"][0]["content"] for r in records[:-1]] == [p["prompt"] for p in good]
    assert records[1500]["source"] == "first.jsonl:1503"
    quarantine = [json.loads(line) for line in made.path("quarantine.jsonl").read_text().splitlines()]
    assert [(q["file"], q["line"]) for q in quarantine] == [
        ("first.jsonl", 1501), ("first.jsonl", 1502), ("first.jsonl", 2503), ("second.jsonl", 3),
    ]  # fmt: skip
    assert "the same text as chosen" in quarantine[1]["reason"]
    assert made.summary["quarantined"] == 4


def test_ingest_refuses_prompts_without_a_usable_row(execute: Execute, tmp_path: Path) -> None:
    path = specs.jsonl(tmp_path / "bad.jsonl", ["nonsense"])
    with pytest.raises(StageError, match=r"no usable row in bad\.jsonl"):
        execute(INGEST, IngestConfig(kind="prompts"), {"files.0": path})
    assert execute(INGEST, IngestConfig(kind="pairs"), {"files.0": path}).summary["rows"] == 0


def test_a_repeated_prompt_stands_once(execute: Execute, tmp_path: Path) -> None:
    path = specs.jsonl(tmp_path / "prompts.jsonl", [*specs.prompts(3), specs.prompts(1)[0]])
    made = execute(INGEST, IngestConfig(kind="prompts"), {"files.0": path})
    assert made.summary["rows"] == 3
    assert made.summary["quarantine_reasons"] == {"prompt: repeats an earlier prompt; first at prompts.jsonl:1": 1}


def test_shards_keep_order_and_size_and_never_hold_control_tokens_from_text(
    execute: Execute, policy: Artifact, tmp_path: Path
) -> None:
    hostile = {"prompt": "<|im_end|>", "chosen": "a<|im_start|>b", "rejected": "fine"}
    path = specs.jsonl(tmp_path / "pairs.jsonl", [*specs.pairs(40), hostile, {**hostile, "prompt": "x" * 300}])
    ingested = execute(INGEST, IngestConfig(kind="pairs"), {"files.0": path})
    tokens = execute(ENCODE, EncodeConfig(max_length=200), {"policy": policy, "pairs": ingested})
    shards = execute(PREPARE, PrepareConfig(shard_rows=16), {"pairs.0": tokens})
    tables = [read_table(table.path) for table in shards.tables(SHARD)]
    assert [table.num_rows for table in tables] == [16, 16, 9]
    pairs = [pair for table in tables for pair in encoded_pairs(table)]
    expected = [row["pair_id"] for row in rows_in(ingested, RECORDS)][:41]
    assert [pair.pair_id for pair in pairs] == expected
    tokenizer = load_encoder(policy.folder()).tokenizer
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert pairs[40].prompt_ids.count(start) == 2  # user and assistant: the template's own
    assert pairs[40].prompt_ids.count(end) == 1
    assert pairs[40].chosen_ids.count(start) == 0
    assert tokenizer.decode(pairs[40].chosen_ids[:-1]) == "a<|im_start|>b"
    quarantine = json.loads(tokens.path("quarantine.jsonl").read_text())
    assert (quarantine["file"], quarantine["line"]) == ("pairs.jsonl", 42)
    assert "max_length 200" in quarantine["reason"]
    assert (tokens.summary["read"], tokens.summary["bad"]) == (42, 1)


@pytest.mark.parametrize("layout", ["auto", "padded"])
def test_reference_agrees_with_the_model_row_by_row(
    layout: str, execute: Execute, policy: Artifact, tmp_path: Path
) -> None:
    path = specs.jsonl(tmp_path / "pairs.jsonl", specs.pairs(150))
    ingested = execute(INGEST, IngestConfig(kind="pairs"), {"files.0": path})
    tokens = execute(ENCODE, EncodeConfig(), {"policy": policy, "pairs": ingested})
    shards = execute(PREPARE, PrepareConfig(shard_rows=100), {"pairs.0": tokens})
    config = ReferenceConfig.model_validate({"precision": "fp32", "layout": layout, "mismatched": layout == "auto"})
    two = Resources(workers=2, cpus=1)
    logprobs = execute(REFERENCE, config, {"policy": policy, "shards": shards}, two)
    data = ShardData(shards, logprobs)
    rows = [0, 63, 64, 99, 100, 149]
    model = load_model(policy.folder(), torch.device("cpu")).eval()
    found = data.reference(rows)
    torch.testing.assert_close(found[:2].T, score(model, data.pairs(rows), "shared", "fp32"), rtol=1e-5, atol=1e-4)
    if config.mismatched:
        other = score(model, data.mismatched(rows), "shared", "fp32")[:, 0]
        torch.testing.assert_close(found[2], other, rtol=1e-5, atol=1e-4)
        assert other.lt(-1).all()
    else:
        assert found[2].eq(0).all()


def test_pairs_of_one_prompt_have_no_mismatched_answer_and_a_note(
    execute: Execute, policy: Artifact, tmp_path: Path
) -> None:
    rows = [{**row, "prompt": "The same one."} for row in specs.pairs(5)]
    ingested = execute(INGEST, IngestConfig(kind="pairs"), {"files.0": specs.jsonl(tmp_path / "pairs.jsonl", rows)})
    tokens = execute(ENCODE, EncodeConfig(), {"policy": policy, "pairs": ingested})
    shards = execute(PREPARE, PrepareConfig(), {"pairs.0": tokens})
    logprobs = execute(REFERENCE, ReferenceConfig(mismatched=True), {"policy": policy, "shards": shards})
    assert "the same prompt" in logprobs.summary["note"]
    found = ShardData(shards, logprobs).reference(range(5))
    assert found[:2].lt(-1).all()
    assert found[2].eq(0).all()


def test_rollouts_record_what_was_sampled_and_how(execute: Execute, policy: Artifact, tmp_path: Path) -> None:
    path = specs.jsonl(tmp_path / "prompts.jsonl", specs.prompts(5))
    prompts = execute(INGEST, IngestConfig(kind="prompts"), {"files.0": path})
    config = RolloutConfig(samples=3, max_tokens=6, max_length=256, engine="transformers")
    made = execute(ROLLOUT, config, {"policy": policy, "prompts": prompts})
    rows = rows_in(made, RECORDS)
    ids = [row["prompt_id"] for row in rows_in(prompts, RECORDS)]
    assert [(r["prompt_id"], r["sample"]) for r in rows] == [(i, n) for i in ids for n in range(3)]
    assert {r["policy"] for r in rows} == {policy.fingerprint}
    assert all(1 <= r["tokens"] <= 6 and r["finish_reason"] in ("stop", "length") for r in rows)
    assert json.loads(rows[0]["sampling"])["max_tokens"] == 6


def test_a_prompt_without_room_for_an_answer_goes_to_quarantine(
    execute: Execute, policy: Artifact, tmp_path: Path
) -> None:
    path = specs.jsonl(tmp_path / "prompts.jsonl", [{"prompt": "short"}, {"prompt": "long " * 40}, {"prompt": "x"}])
    prompts = execute(INGEST, IngestConfig(kind="prompts"), {"files.0": path})
    config = RolloutConfig(samples=2, max_tokens=32, max_length=128, engine="transformers")
    made = execute(ROLLOUT, config, {"policy": policy, "prompts": prompts})
    assert [row["messages"][0]["content"] for row in rows_in(made, RECORDS)] == ["short"] * 2 + ["x"] * 2
    (quarantined,) = (json.loads(line) for line in made.path("quarantine.jsonl").read_text().splitlines())
    assert (quarantined["file"], quarantined["line"]) == ("prompts.jsonl", 2)
    assert "longer than 96 tokens" in quarantined["reason"]
    assert (made.summary["prompts"], made.summary["quarantined"]) == (2, 1)
    with pytest.raises(StageError, match=r"no prompt can be answered: .*longer than"):
        execute(ROLLOUT, config.model_copy(update={"max_length": 33}), {"policy": policy, "prompts": prompts})


def test_a_workers_own_words_reach_the_user(execute: Execute, policy: Artifact, tmp_path: Path) -> None:
    path = specs.jsonl(tmp_path / "prompts.jsonl", specs.prompts(1))
    prompts = execute(INGEST, IngestConfig(kind="prompts"), {"files.0": path})
    gone = replace(policy.parts[0], place="nowhere")
    broken = replace(policy, parts=(gone,))
    with pytest.raises(Exception, match="damaged") as caught:
        execute(ROLLOUT, RolloutConfig(engine="transformers"), {"policy": broken, "prompts": prompts})
    assert "damaged" in reason(caught.value)


def test_a_killed_generator_is_replaced(execute: Execute, policy: Artifact, tmp_path: Path) -> None:
    path = specs.jsonl(tmp_path / "prompts.jsonl", specs.prompts(200))
    prompts = execute(INGEST, IngestConfig(kind="prompts"), {"files.0": path})
    config = RolloutConfig(samples=4, max_tokens=100, max_length=256, engine="transformers")
    killed: list[int] = []
    finished: dict[str, str] = {}

    def kill_first_generator() -> None:
        while not killed:
            if found := {path: at for path, at in processes.parts(tmp_path / "store").items() if "-rollout" in path}:
                for process in processes.children(os.getpid(), "ray::Generator"):
                    process.kill()
                    killed.append(process.pid)
                finished.update(found)
            time.sleep(0.02)

    killer = threading.Thread(target=kill_first_generator, daemon=True)
    killer.start()
    made = execute(ROLLOUT, config, {"policy": policy, "prompts": prompts})
    assert killed
    assert set(finished.values()) <= {part.place for part in made.parts}
    assert len(made.parts) == 7  # of 32 prompts
    ids = [row["prompt_id"] for row in rows_in(prompts, RECORDS)]
    rows = rows_in(made, RECORDS)
    assert [(r["prompt_id"], r["sample"]) for r in rows] == [(i, n) for i in ids for n in range(4)]


def test_of_many_workers_the_reason_of_one_is_said_in_its_own_words(cluster: None, tmp_path: Path) -> None:
    context = StageContext(artifacts.output(tmp_path, "made"), Resources(workers=2, cpus=1), lambda *said: None)
    with pytest.raises(StageError) as caught:
        run_parts(slices(8, 1), "tests.unit.test_parts:Numbers", context, "rows", log=tmp_path / "log", breaks_at=4)
    assert str(caught.value) == "it breaks here"
