"""Settings that are valid one by one and cannot work together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.spec import load
from pipelines.spec.problems import SpecError
from tests import specs


@pytest.mark.parametrize(
    ("section", "where", "part"),
    [
        (
            {"rollout": {"engine": "transformers", "engine_options": {"max_num_seqs": 9}}},
            "rollout.engine_options",
            "these are vLLM's, and rollout.engine is transformers",
        ),
        (
            {"rollout": {"engine": "transformers"}, "resources": {"rollout": {"tensor_parallel": 2}}},
            "resources.rollout.tensor_parallel",
            "transformers uses one GPU a worker",
        ),
        ({"rollout": {"max_tokens": 512, "max_length": 512}}, "rollout.max_tokens", "leaves no room for a prompt"),
        ({"rollout": {"temperature": 0}}, "rollout.temperature", "makes all answers to a prompt the same"),
        ({"judge": {"use": "rules"}}, "judge", "rules without a rule"),
        ({"judge": {"use": "rules", "min_words": 5, "max_words": 2}}, "judge.min_words", "above max_words 2"),
        (
            {"judge": {"use": "stages.judge.judges.rules.judge:Rules", "options": {"limt": 2}}},
            "judge.options",
            "not take these",
        ),
        ({"rollout": {"samples": 1}}, "rollout.samples", "at least 2 samples"),
        ({"pair": {"strategy": "rejection_sampling"}}, "rollout.samples", "more than the 8 that it accepts"),
        ({"pair": {"max_pairs": 2}}, "pair.max_pairs", "means nothing to pair.strategy best_vs_worst"),
        ({"resources": {"train": {"max_failures": -2}}}, "resources.train.max_failures", "-1"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path: Path, section: dict[str, Any], where: str, part: str) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"):
        (model / name).write_text("{}")
    specs.jsonl(tmp_path / "train.jsonl", specs.prompts(2))
    judge = {"use": "rules", "max_words": 9}
    spec = {"name": "x", "policy": {"model": "model"}, "prompts": {"train": "train.jsonl"}, "judge": judge}
    with pytest.raises(SpecError) as caught:
        load.load(str(specs.write(tmp_path, spec | section)))
    (problem,) = caught.value.problems
    assert problem.where.endswith(where)
    assert part in problem.message
