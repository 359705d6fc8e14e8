"""A run whose answers an ensemble judges, a language model behind an address among it: killed, and gone on with."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

from tests import specs, tiny
from tests.llm_server import Answer, serving
from tests.ray import processes
from tests.ray.processes import run, wait_for
from tests.unit.test_llm_judge import BOTH

AT_ONCE = 4


def more_vowels(question: str, _: int) -> Answer:
    """Prefers the answer with more vowels."""
    counts = {name: sum(text.count(letter) for letter in "aeiou") for name, text in BOTH.findall(question)}
    best = "tie" if counts["A"] == counts["B"] else max(counts, key=lambda name: counts[name])
    return Answer(json.dumps({"reason": "vowels", "verdict": best}), wait=0.05)


def spec(folder: Path, url: str) -> Path:
    specs.jsonl(folder / "train.jsonl", specs.prompts(70))
    heldout = [{**each, "kind": "even" if n % 2 else "odd"} for n, each in enumerate(specs.prompts(6, 100))]
    specs.jsonl(folder / "heldout.jsonl", heldout)
    specs.jsonl(folder / "checks.jsonl", specs.prompts(3, 200))
    llm = {"use": "llm", "endpoint": {"url": url, "model": "m", "concurrency": AT_ONCE, "attempts": 1}}
    document: dict[str, Any] = {
        "name": "judged", "policy": {"model": str(tiny.save(folder / "model"))},
        "prompts": {"train": "train.jsonl", "heldout": "heldout.jsonl"},
        "rollout": {"samples": 2, "max_tokens": 6, "max_length": 128, "engine": "transformers"},
        "judge": {"use": "ensemble", "judges": [llm, {"use": "rules", "must_contain": ["a"]}]},
        "pair": {"soft": {"votes": True}},
        "train": {"learning_rate": 1e-3, "batch_size": 8, "precision": "fp32"},
        "evaluate": {
            "against": ["previous", "base"], "task": "kind", "kl": True,
            "checks": {"prompts": "checks.jsonl", "judge": {"use": "rules", "max_words": 100}},
            "promote_if": {"win_rate": 0.0, "max_check_regression": 0.5, "max_kl": 1000},
        },
    }  # fmt: skip
    return specs.write(folder, document)


def test_verdicts_are_paid_once_though_the_run_is_killed(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with serving(more_vowels) as server:
        path = spec(tmp_path, server.url)
        process = processes.start(path, store)
        wait_for(lambda: server.asked >= 40, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        kept = len(list(store.glob("verdicts/*/*.json")))
        assert kept >= 40 - AT_ONCE
        summary = run(path, store)
        asked = Counter(each["messages"][0]["content"] for each in server.requests)
        assert sum(asked.values()) - len(asked) <= 2 * AT_ONCE  # what was under way at the kill, and just begun
    (row,) = summary["rounds"]
    assert row["promoted"] is True
    assert set(row["against"]) == {"previous", "base"}
    assert set(row["against"]["base"]["tasks"]) == {"even", "odd"}
    assert row["checks"]["prompts"] == 3
    assert row["divergence"]["low"] <= row["divergence"]["mean"]
    steps = {step["key"]: step for step in summary["steps"]}
    (voted,) = (m for m in processes.manifests(store) if m["fingerprint"] == steps["round-1/judge"]["fingerprint"])
    assert {"0, 1"} == set(voted["summary"]["agreement_of_two"])
    (judged,) = (m for m in processes.manifests(store) if m["fingerprint"] == steps["round-1/judge-0"]["fingerprint"])
    assert judged["summary"]["verdicts"] == 70
    paid = judged["summary"]["paid"]["tokens"]
    assert paid == judged["summary"]["input_tokens"] + judged["summary"]["output_tokens"]
