"""``rondo plan`` says what steps take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from clusters.memory import usable_memory
from pipelines.cli import app
from pipelines.run.store import ArtifactStore
from tests.unit import workspace
from tests.unit.test_plan_memory import LLAMA_8B, TINY


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return workspace.make(tmp_path)


def planned(folder: Path, *options: str) -> str:
    spec = str(workspace.spec(folder))
    result = CliRunner().invoke(app, ["plan", spec, "--store", str(folder / "store"), *options])
    assert result.exit_code == 0, result.output
    return result.stdout


def rows(folder: Path, *options: str) -> dict[str, Any]:
    return {row["key"]: row for row in json.loads(planned(folder, "--json", *options))}


def test_a_table_of_what_the_steps_take(folder: Path) -> None:
    (folder / "model/config.json").write_text(json.dumps(TINY))
    lines = planned(folder, "--set", "rounds=2").split("\n\n")[1].splitlines()
    assert lines[0] == "memory a worker, estimated (docs/memory.md), in GiB"
    named = [line.split()[0] for line in lines[1:]]
    # What is trained in the first round is stored in float32, so that the reference of the second takes more.
    assert named == ["round-1/rollout", "round-1/reference", "round-1/train", "round-2/reference"]
    assert lines[1].split()[1:6] == ["(+4)", "1", "x", "0.6", "process"]
    assert "tokens" not in "".join(lines[1:])


def test_what_would_not_fit_is_a_note(folder: Path) -> None:
    (folder / "model/config.json").write_text(json.dumps(LLAMA_8B))
    found = planned(folder, "--set", "resources.train.memory_gib=16", "--set", "resources.train.cpus=1")
    (note,) = (line for line in found.splitlines() if line.startswith("note: round-1/train"))
    assert "would not fit" in note
    assert "of the 16.0 GiB of resources.train.memory_gib" in note


def test_offloaded_shares_need_main_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clusters.local._gpus", lambda _: 2)
    (folder / "model/config.json").write_text(json.dumps(LLAMA_8B))
    train = "resources.train={offload: true, strategy: fsdp, workers: 2, gpus: 1, accelerator_type: H100, memory_gib: "
    found = planned(folder, "--set", train + "80}")
    (line,) = (line for line in found.splitlines() if line.startswith("round-1/train ") and " x " in line)
    assert line.endswith("; 63.5 in main memory")
    assert "note: round-1/train" not in found
    (note,) = (
        row for row in planned(folder, "--set", train + "40}").splitlines() if row.startswith("note: round-1/tr")
    )
    assert "about 63.5 GiB of the 40.0 GiB of resources.train.memory_gib" in note
    assert "resources.train.offload moves there" in note
    needs = rows(folder, "--set", train + "40}")["round-1/train"]["needs"]
    assert sum(needs["main_memory"].values()) > 63 * 2**30 > needs["memory"]


def test_programs_get_the_same_numbers(folder: Path) -> None:
    (folder / "model/config.json").write_text(json.dumps(TINY))
    found = rows(folder)
    assert found["round-1/pair"]["needs"] is None
    train = found["round-1/train"]["needs"]
    assert train["workers"] == [1, 1]
    assert train["memory"] == sum(train["parts"].values())
    assert train["misfit"] is None
    assert train["tokens"] is None


def test_tokens_are_told_as_soon_as_the_rows_are_there(folder: Path) -> None:
    (folder / "model/config.json").write_text(json.dumps(TINY))
    store = ArtifactStore(str(folder / "store"))
    step = rows(folder)["prompts"]
    manifest = {"key": "prompts", "payload": {"stage": "ingest"}, "summary": {"rows": 2}, "seconds": 1.0}
    store.commit(store.output(step["fingerprint"], {}), manifest)
    assert rows(folder)["round-1/rollout"]["needs"]["tokens"] == 2 * 4 * 256
    assert "at most 2,048 tokens" in planned(folder)


def test_what_is_not_known_is_said_once(folder: Path) -> None:
    assert (
        planned(folder)
        .splitlines()[-1]
        .startswith("memory: not known: the model's config.json does not say hidden_size")
    )
    assert rows(folder)["round-1/train"]["needs"]["unknown"].startswith("not known: the model's config.json")


def test_a_hub_model_is_known_from_the_cache_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit, cache = "0" * 40, folder / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    policy = ("--set", "policy={model: some/model, revision: '" + commit + "'}")
    said = "not known: the model's config.json is not on this machine"
    assert rows(folder, *policy)["round-1/train"]["needs"]["unknown"] == said
    snapshot = cache / "models--some--model/snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(TINY))
    assert rows(folder, *policy)["round-1/train"]["needs"]["memory"] > 0


def test_the_memory_of_this_machine_is_that_of_its_group(tmp_path: Path) -> None:
    whole = usable_memory(tmp_path)
    assert whole is not None
    (tmp_path / "memory.max").write_text("max\n")
    assert usable_memory(tmp_path) == whole
    (tmp_path / "memory.max").write_text("1048576\n")
    assert usable_memory(tmp_path) == 1 << 20
