"""Steps: what belongs to their identity, what does not, and the order in which they run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from pydantic import PositiveInt

from pipelines.fingerprint import fingerprint, hash_path
from pipelines.plan.steps import Source, Step, walk
from stages.base import Config, Resources, Stage, TrainResources
from stages.catalog import INGEST, JUDGE, MATERIALISE, STAGES, TRAIN
from stages.data.config import IngestConfig
from stages.judge.config import JudgeStageConfig
from stages.judge.judges.config import CustomJudge, SentimentJudge
from stages.judge.judges.rules.config import RulesJudge
from stages.policy.config import MaterialiseConfig
from stages.train.config import LoraConfig, TrainConfig


class MixConfig(Config):
    share: float = 0.5
    rows: PositiveInt = 10


MIX = Stage("mix", 1, MixConfig, ("left", "right", "files"), "records", "tests.unit.steps:mix")


def mix(key: str = "mix", config: MixConfig | None = None, **inputs: Step | Source) -> Step:
    return Step(key, MIX, config or MixConfig(), inputs)


def source(name: str = "a.jsonl", place: str = "/one", content: str = "1") -> Source:
    return Source(name, Path(place) / name, content)


def test_the_payload_is_stage_version_config_and_inputs() -> None:
    left = source(content="abc")
    step = mix(config=MixConfig(rows=3), left=left)
    assert step.payload == {"stage": "mix", "version": 1, "config": {"rows": 3}, "inputs": {"left": "abc"}}
    assert step.fingerprint == fingerprint(step.payload)


def test_a_value_that_equals_its_default_does_not_count() -> None:
    assert mix(config=MixConfig(share=0.5, rows=10)).fingerprint == mix().fingerprint
    assert mix(config=MixConfig(share=0.6)).fingerprint != mix().fingerprint


def test_a_new_field_with_a_default_changes_no_fingerprint() -> None:
    class Later(MixConfig):
        shuffle: bool = False

    later = dataclasses.replace(MIX, config=Later)
    assert Step("mix", later, Later(rows=3), {}).fingerprint == mix(config=MixConfig(rows=3)).fingerprint
    assert Step("mix", later, Later(shuffle=True), {}).fingerprint != mix().fingerprint


def test_key_resources_and_paths_are_no_part_of_the_identity() -> None:
    first = Step("a", MIX, MixConfig(), {"left": source(place="/one")})
    other = Step("b", MIX, MixConfig(), {"left": source("b.jsonl", "/two")}, Resources(workers=8, cpus=3, gpus=1))
    assert first.fingerprint == other.fingerprint


def test_training_resources_are_no_part_of_the_identity() -> None:
    wide = TrainResources(
        workers=4, strategy="fsdp", gpus=1, offload=True, micro_batch_tokens=1, checkpoint_every=1, max_failures=-1
    )
    assert Step("a", TRAIN, TrainConfig(), {}).fingerprint == Step("a", TRAIN, TrainConfig(), {}, wide).fingerprint


def test_every_part_of_the_identity_counts() -> None:
    left, right = source(content="1"), source(content="2")
    steps = [
        mix(left=left, right=right),
        mix(left=right, right=left),
        mix(left=left),
        mix(config=MixConfig(rows=3), left=left, right=right),
        Step("mix", dataclasses.replace(MIX, version=2), MixConfig(), {"left": left, "right": right}),
        Step("mix", dataclasses.replace(MIX, name="blend"), MixConfig(), {"left": left, "right": right}),
    ]
    assert len({step.fingerprint for step in steps}) == len(steps)


def test_a_change_deep_in_the_inputs_reaches_every_step_above() -> None:
    def top(content: str) -> Step:
        return mix(left=mix(left=mix(left=source(content=content))))

    assert top("1").fingerprint == top("1").fingerprint
    assert top("1").fingerprint != top("2").fingerprint


def test_a_file_counts_by_content(tmp_path: Path) -> None:
    def ingest(folder: str, content: str) -> str:
        path = tmp_path / folder / "rows.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        rows = Source("x", path, hash_path(path))
        return Step(folder, INGEST, IngestConfig(kind="pairs"), {"files.0": rows}).fingerprint

    assert ingest("one", "a") == ingest("two", "a")
    assert ingest("three", "b") != ingest("one", "a")


def test_another_revision_of_a_hub_model_is_another_policy() -> None:
    def base(hub: str, revision: str) -> str:
        return Step("base", MATERIALISE, MaterialiseConfig(hub=hub, revision=revision), {}).fingerprint

    assert base("owner/name", "a" * 40) == base("owner/name", "a" * 40)
    assert len({base("owner/name", "a" * 40), base("owner/name", "b" * 40), base("owner/other", "a" * 40)}) == 3


def test_the_variants_of_a_union_do_not_collide() -> None:
    judges = [SentimentJudge(use="sentiment"), RulesJudge(use="rules"), RulesJudge(use="rules", max_words=5)]
    steps = [Step("judge", JUDGE, JudgeStageConfig(judge=judge), {}) for judge in judges]
    assert len({step.fingerprint for step in steps}) == 3


def test_an_adapter_with_default_settings_is_not_full_training() -> None:
    full, adapter = TrainConfig(), TrainConfig(lora=LoraConfig())
    assert Step("t", TRAIN, full, {}).fingerprint != Step("t", TRAIN, adapter, {}).fingerprint


def test_a_plugins_source_is_part_of_the_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "plan_judge.py"

    def judged(text: str) -> Step:
        module.write_text(text)
        step = Step("judge", JUDGE, JudgeStageConfig(judge=CustomJudge(use="plan_judge:A")), {})
        assert set(step.payload["plugins"]) == {"plan_judge:A"}
        return step

    first = judged("class A: pass\n").fingerprint
    assert judged("class A: better = True\n").fingerprint != first
    assert judged("class A: pass\n").fingerprint == first


def test_a_step_without_plugins_names_none() -> None:
    assert "plugins" not in Step("judge", JUDGE, JudgeStageConfig(judge=SentimentJudge(use="sentiment")), {}).payload


def test_a_step_with_the_wrong_config_or_input_is_refused() -> None:
    with pytest.raises(TypeError, match="round-1/mix: mix takes a MixConfig"):
        Step("round-1/mix", MIX, TrainConfig(), {})
    with pytest.raises(TypeError, match="round-1/mix: mix has no input middle"):
        Step("round-1/mix", MIX, MixConfig(), {"left": source(), "middle": source()})
    Step("mix", MIX, MixConfig(), {"files.0": source(), "files.1": source()})


def test_inputs_come_before_their_users() -> None:
    bottom = mix("bottom", left=source())
    left, right = mix("left", MixConfig(rows=1), left=bottom), mix("right", MixConfig(rows=2), left=bottom)
    top = mix("top", MixConfig(rows=3), left=left, right=right)
    assert [step.key for step in walk([top])] == ["bottom", "left", "right", "top"]


def test_equal_steps_run_once_under_the_first_name() -> None:
    twin, other = mix("twin", left=source()), mix("other", left=source(place="/elsewhere"))
    top = mix("top", MixConfig(rows=3), left=twin, right=other)
    assert [step.key for step in walk([top])] == ["twin", "top"]
    assert [step.key for step in walk([top, twin, top])] == ["twin", "top"]
    assert walk([]) == []


def test_a_long_chain_of_shared_steps_is_walked_in_order() -> None:
    step = mix("0", left=source())
    for number in range(1, 100):
        step = mix(str(number), left=step, right=step)
    assert [s.key for s in walk([step])] == [str(number) for number in range(100)]


def test_the_catalog_names_each_stage_once_and_points_at_functions() -> None:
    names = [stage.name for stage in STAGES]
    assert len(set(names)) == len(names)
    for stage in STAGES:
        module, _, function = stage.run.partition(":")
        path = Path(__file__).parents[2] / f"{module.replace('.', '/')}.py"
        assert f"def {function}(" in path.read_text(encoding="utf-8"), stage.name
