from __future__ import annotations

import json
from pathlib import Path

from pipelines.commands.samples import lines
from pipelines.run.store import ArtifactStore

ROW = {
    "prompt_id": "p", "prompt": [{"role": "user", "content": "Why?\nSay it."}], "win_rate": {"base": 0.25},
    "answers": {
        "policy": [{"text": "Because\x1b[31m.", "tokens": 2, "score": 0.5}], "base": [{"text": "So.", "tokens": 1}],
    },
}  # fmt: skip


def test_answers_stand_side_by_side_without_control_characters(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    store.store.write("artifacts/a/b/evaluation/samples.jsonl", (json.dumps(ROW) + "\n" + json.dumps(ROW)).encode())
    rounds = [{"round": 1, "samples": None}, {"round": 2, "samples": "artifacts/a/b/evaluation/samples.jsonl"}]
    assert list(lines(store, {"rounds": rounds}, 1)) == [
        "",
        "prompt p, round 2, wins 0.25 against base",
        "          user | Why?",
        "               | Say it.",
        "      new 0.50 | Because\\x1b[31m.",
        "          base | So.",
    ]
    assert len(list(lines(store, {"rounds": rounds}, 5))) == 12


def test_a_run_that_measured_nothing_says_so(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    assert list(lines(store, {"rounds": [{"round": 1}]}, 3)) == ["no answers to held-out prompts"]
