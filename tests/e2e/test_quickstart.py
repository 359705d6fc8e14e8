"""The whole pipeline with real parts: SmolLM2-135M, vLLM, Ray Data, Ray Train and the sentiment judge."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines.spec import load
from tests import specs

PROMPTS = ["Describe a spring morning.", "How was the concert?", "Tell me about your town.", "Write about a storm."]


def rondo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart with few prompts and short answers."""
    folder = tmp_path_factory.mktemp("quickstart")
    bundled = load.recipes()["quickstart"]
    text = bundled.read_text(encoding="utf-8")
    specs.jsonl(folder / "train.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
    specs.jsonl(folder / "heldout.jsonl", [{"prompt": f"{prompt} Be brief."} for prompt in PROMPTS])
    path = folder / "quickstart.yaml"
    path.write_text(text.replace("quickstart/", ""), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def small() -> list[str]:
    changes = ("rollout.max_tokens=16", "pair.min_margin=0", "train.batch_size=4", "train.epochs=1", "iterate.replay=1")
    return [argument for change in changes for argument in ("--set", change)]


@pytest.fixture(scope="module")
def summary(spec: Path, small: list[str]) -> dict[str, Any]:
    """Rollout, training, rollout, training in one run on two CPUs, of which each takes both: it goes on only if every
    engine and every training has let them go (Ray issue 64035: vLLM's placement groups may outlive their stage)."""
    (spec.parent / "local.yaml").write_text("kind: local\ncpus: 2\n")
    all_cpus = [f"--set=resources.{stage}.cpus=2" for stage in ("rollout", "reference", "train")]
    where = ["--store", str(spec.parent / "store"), "--cluster", str(spec.parent / "local.yaml")]
    done = rondo("run", str(spec), *small, *all_cpus, *where, "--json")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_two_rounds_end_with_a_policy_that_loads(summary: dict[str, Any]) -> None:
    assert summary["status"] == "done"
    assert [r["round"] for r in summary["rounds"]] == [1, 2]
    for row in summary["rounds"]:
        assert row["first_loss"] == pytest.approx(math.log(2), abs=1e-4)
        assert row["pairs"] >= 1
        win = row["win_rate"]
        assert 0 <= win["low"] <= win["mean"] <= win["high"] <= 1
        assert win["prompts"] == len(PROMPTS)
    files = {path.name for path in Path(summary["policy"]).iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= files


def test_replayed_pairs_join_the_second_round(summary: dict[str, Any]) -> None:
    assert summary["rounds"][1]["pairs"] > summary["rounds"][0]["pairs"]


def test_vllm_answered_and_is_gone(summary: dict[str, Any], spec: Path) -> None:
    manifests = [json.loads(p.read_text()) for p in (spec.parent / "store").glob("artifacts/*/*/manifest.json")]
    engines = [m["summary"]["engine"] for m in manifests if m["payload"]["stage"] == "rollout"]
    assert engines
    assert set(engines) == {"vllm"}
    store = str(spec.parent / "store")
    left = [p.pid for p in psutil.process_iter(["cmdline"]) if store in " ".join(p.info["cmdline"] or ())]
    assert left == []


def test_again_runs_nothing(summary: dict[str, Any], spec: Path, small: list[str]) -> None:
    done = rondo("run", str(spec), *small, "--store", str(spec.parent / "store"), "--json")
    again = json.loads(done.stdout)
    assert all(step["cached"] for step in again["steps"])
    assert again["policy"] == summary["policy"]
    assert [s["fingerprint"] for s in again["steps"]] == [s["fingerprint"] for s in summary["steps"]]


def test_another_beta_runs_only_what_depends_on_it(summary: dict[str, Any], spec: Path, small: list[str]) -> None:
    changed = ["--set", "train.beta=0.2", "--set", "rounds=1"]
    planned = rondo("plan", str(spec), *small, *changed, "--store", str(spec.parent / "store"), "--json")
    rows = json.loads(planned.stdout)
    to_run = {row["key"]: row["why"] for row in rows if not row["committed"]}
    assert "round-1/reference" not in to_run
    assert "round-1/rollout" not in to_run
    assert to_run["round-1/train"] == "beta 0.1 -> 0.2"


def test_show_and_runs_find_the_run(summary: dict[str, Any], spec: Path) -> None:
    store = str(spec.parent / "store")
    assert summary["run"] in rondo("runs", "--store", store).stdout
    shown = rondo("show", summary["run"], "--store", store)
    assert summary["policy"] in shown.stdout
