"""A spec unrolled: which step takes what from which."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.plan import rounds
from pipelines.plan.rounds import Plan
from pipelines.plan.steps import Source, Step
from pipelines.spec.models import EvaluateSpec
from tests.unit import workspace
from tests.unit.workspace import OFFLINE, SPEC

GATE = "evaluate: {promote_if: {win_rate: 0.5}}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return workspace.make(tmp_path)


def plan(folder: Path, text: str = SPEC, *overrides: str) -> Plan:
    return rounds.plan(workspace.loaded(folder, text, *overrides).spec, folder)


def by_key(planned: Plan) -> dict[str, Step]:
    return {step.key: step for step in planned.steps}


def step(value: Step | Source) -> Step:
    assert isinstance(value, Step)
    return value


def key(value: Step | Source) -> str:
    return value.key


def test_one_round_from_prompts_to_a_measured_policy(folder: Path) -> None:
    planned = plan(folder)
    assert {s.key for s in planned.steps} == {
        "base", "prompts", "heldout", "round-1/rollout", "round-1/judge", "round-1/pair", "round-1/encode",
        "round-1/prepare",
        "round-1/reference", "round-1/train", "round-1/evaluate-rollout", "round-1/evaluate-judge",
        "base/heldout-rollout", "base/heldout-judge", "round-1/evaluate",
    }  # fmt: skip
    assert planned.policy.key == "round-1/train"
    (only,) = planned.rounds
    assert only.evaluate is not None
    assert {name: key(value) for name, value in only.evaluate.inputs.items()} == {
        "policy": "round-1/evaluate-rollout",
        "judged": "round-1/evaluate-judge",
        "baseline.base": "base/heldout-rollout",
        "baseline_judged.base": "base/heldout-judge",
    }


def test_every_step_comes_after_its_inputs(folder: Path) -> None:
    seen: set[str] = set()
    for current in plan(folder, SPEC + GATE + "iterate: {replay: 0.5}\n", "rounds=3").steps:
        for value in current.inputs.values():
            assert isinstance(value, Source) or value.fingerprint in seen, current.key
        seen.add(current.fingerprint)


def test_offline_preferences_need_neither_rollout_nor_judge(folder: Path) -> None:
    planned = plan(folder, OFFLINE)
    assert [s.key for s in planned.steps] == [
        "base", "preferences/pairs.jsonl", "preferences/curate", "preferences/pairs.jsonl/encode", "round-1/prepare",
        "round-1/reference", "round-1/train",
    ]  # fmt: skip
    assert planned.rounds[0].evaluate is None
    assert planned.rounds[0].promote is None


def test_offline_preferences_can_be_measured_on_held_out_prompts(folder: Path) -> None:
    text = OFFLINE + "prompts: {heldout: heldout.jsonl}\njudge: {use: sentiment}\n"
    planned = plan(folder, text)
    assert planned.rounds[0].evaluate is not None
    assert "round-1/rollout" not in by_key(planned)


def test_given_preferences_join_the_first_rounds_own_pairs_only(folder: Path) -> None:
    planned = plan(folder, SPEC + "preferences: [pairs.jsonl]\n", "rounds=2")
    first, second = (r.prepare.inputs for r in planned.rounds)
    assert {name: key(value) for name, value in first.items()} == {
        "selection": "preferences/curate", "selected.0": "preferences/pairs.jsonl/encode",
        "pairs.0": "round-1/encode",
    }  # fmt: skip
    assert {name: key(value) for name, value in second.items()} == {"pairs.0": "round-2/encode"}


def test_replay_takes_the_pairs_of_all_earlier_rounds(folder: Path) -> None:
    planned = plan(folder, SPEC + "preferences: [pairs.jsonl]\niterate: {replay: 0.5}\n", "rounds=3")
    replayed = [
        {name: key(value) for name, value in r.prepare.inputs.items() if name.startswith("replay")}
        for r in planned.rounds
    ]
    assert replayed == [
        {},
        {"replay.0": "round-1/encode"},
        {"replay.0": "round-1/encode", "replay.1": "round-2/encode"},
    ]
    assert planned.rounds[1].prepare.payload["config"] == {
        "preferences": 0.5, "replay": 0.5, "source_of": [0], "max_bad_share": 0.2,
    }  # fmt: skip
    assert all("selection" in r.prepare.inputs for r in planned.rounds)


def test_a_new_file_is_all_that_is_read_and_tokenised_anew(folder: Path) -> None:
    text = OFFLINE.replace("[pairs.jsonl]", "[pairs.jsonl, more.jsonl]")
    (folder / "more.jsonl").write_text('{"prompt": "Hi", "chosen": "Good day!", "rejected": "What?"}\n')
    few, more = ({s.fingerprint: s for s in plan(folder, each).steps} for each in (OFFLINE, text))
    new = [step.key for print, step in more.items() if print not in few]
    assert set(new) == {
        "preferences/more.jsonl", "preferences/more.jsonl/encode", "preferences/curate", "round-1/prepare",
        "round-1/reference", "round-1/train",
    }  # fmt: skip


def test_filters_labels_and_mixture_tokenise_nothing_anew(folder: Path) -> None:
    changed = OFFLINE.replace("[pairs.jsonl]", "[{path: pairs.jsonl, weight: 2, task: maths}]")
    changed += "data: {heldout: 0.5, labels: {ties: keep}, filters: {contradictory: drop}}\n"
    first, second = (
        {s.key: s.fingerprint for s in plan(folder, each).steps if s.stage.name in ("ingest", "encode")}
        for each in (OFFLINE, changed)
    )
    assert first == second


def test_how_rows_are_read_is_part_of_what_is_read(folder: Path) -> None:
    changed = OFFLINE.replace("[pairs.jsonl]", "[{path: pairs.jsonl, format: preference}]")
    first, second = (by_key(plan(folder, each))["preferences/pairs.jsonl"] for each in (OFFLINE, changed))
    assert first.fingerprint != second.fingerprint


def test_held_out_pairs_are_measured_after_every_round(folder: Path) -> None:
    text = SPEC + "preferences: [pairs.jsonl]\ndata: {heldout: 0.25}\n"
    planned = plan(folder, text, "rounds=2")
    for number, each in enumerate(planned.rounds, 1):
        assert each.heldout is not None
        assert {name: key(value) for name, value in each.heldout.inputs.items()} == {
            "shards": "preferences/heldout", "policy": f"round-{number}/heldout-logprobs",
            "reference": f"round-{number}/heldout-reference",
        }  # fmt: skip
        assert key(step(each.heldout.inputs["policy"]).inputs["policy"]) == f"round-{number}/train"
    first = planned.rounds[0].heldout
    assert first is not None
    assert step(first.inputs["shards"]).payload["config"] == {"heldout": True}
    assert plan(folder, SPEC + "preferences: [pairs.jsonl]\n").rounds[0].heldout is None


def test_a_loss_without_reference_is_measured_without(folder: Path) -> None:
    planned = plan(folder, OFFLINE + "data: {heldout: 0.25}\ntrain: {loss: simpo, beta: 2}\n")
    (only,) = planned.rounds
    assert only.heldout is not None
    assert set(only.heldout.inputs) == {"shards", "policy"}


def test_a_first_round_has_nothing_to_replay_and_does_not_depend_on_the_share(folder: Path) -> None:
    shares = [plan(folder, SPEC, f"iterate.replay={share}").policy.fingerprint for share in (0, 0.5)]
    assert shares[0] == shares[1]


@pytest.mark.parametrize(
    ("initial", "reference", "trains", "compares"),
    [
        ("previous", "previous", "round-1/train", "round-1/train"),
        ("previous", "base", "round-1/train", "base"),
        ("base", "previous", "base", "round-1/train"),
        ("base", "base", "base", "base"),
    ],
)
def test_where_a_round_starts_and_what_it_is_held_against(
    folder: Path, initial: str, reference: str, trains: str, compares: str
) -> None:
    planned = plan(folder, SPEC, "rounds=2", f"iterate.initial={initial}", f"iterate.reference={reference}")
    second = planned.rounds[1].train
    assert key(second.inputs["policy"]) == trains
    assert key(step(second.inputs["reference"]).inputs["policy"]) == compares
    first = planned.rounds[0].train
    assert key(first.inputs["policy"]) == key(step(first.inputs["reference"]).inputs["policy"]) == "base"


def test_the_last_policy_answers_whatever_training_starts_from(folder: Path) -> None:
    planned = by_key(plan(folder, SPEC, "rounds=2", "iterate.initial=base"))
    assert key(planned["round-1/rollout"].inputs["policy"]) == "base"
    assert key(planned["round-2/rollout"].inputs["policy"]) == "round-1/train"


def test_the_gate_stands_between_a_round_and_the_next(folder: Path) -> None:
    planned = plan(folder, SPEC + GATE, "rounds=2")
    first, second = planned.rounds
    assert first.promote is not None
    assert second.promote is not None
    assert key(second.train.inputs["policy"]) == "round-1/promote"
    assert {name: key(value) for name, value in second.promote.inputs.items()} == {
        "candidate": "round-2/train", "champion": "round-1/promote", "evaluation": "round-2/evaluate",
    }  # fmt: skip
    assert key(first.promote.inputs["champion"]) == "base"
    assert planned.policy.key == "round-2/promote"


def test_evaluation_against_the_base_answers_with_it_once(folder: Path) -> None:
    keys = [s.key for s in plan(folder, SPEC, "rounds=3").steps]
    assert keys.count("base/heldout-rollout") == 1
    assert sum(name.endswith("/evaluate-rollout") for name in keys) == 3
    assert sum("heldout-rollout" in name for name in keys) == 1


def test_evaluation_against_the_previous_policy_uses_its_answers_again(folder: Path) -> None:
    planned = plan(folder, SPEC, "rounds=2", "evaluate.against=previous")
    second = planned.rounds[1].evaluate
    assert second is not None
    first = planned.rounds[0].evaluate
    assert first is not None
    for ours, theirs in (("policy", "baseline.previous"), ("judged", "baseline_judged.previous")):
        assert step(second.inputs[theirs]).fingerprint == step(first.inputs[ours]).fingerprint
    assert key(step(first.inputs["baseline_judged.previous"])) == "base/heldout-judge"


def test_two_baselines_and_a_judge_that_compares(folder: Path) -> None:
    (folder / "mine.py").write_text("def judge():\n    pass\n")
    text = SPEC.replace("{use: sentiment}", '{use: "mine:judge", compares: true}')
    planned = plan(folder, text, "rounds=2", "evaluate.against=[previous, base]", "evaluate.task=kind")
    last = planned.rounds[1].evaluate
    assert last is not None
    assert {name: key(value) for name, value in last.inputs.items()} == {
        "policy": "round-2/evaluate-rollout",
        "baseline.previous": "round-1/train/heldout-rollout", "verdicts.previous": "round-2/evaluate-previous",
        "baseline.base": "base/heldout-rollout", "verdicts.base": "round-2/evaluate-base",
    }  # fmt: skip
    assert last.config.identity() == {"against": ["previous", "base"], "task": "kind"}
    compare = step(last.inputs["verdicts.previous"])
    assert {name: key(value) for name, value in compare.inputs.items()} == {
        "rollouts": "round-2/evaluate-rollout", "against": "round-1/train/heldout-rollout",
    }  # fmt: skip
    first = planned.rounds[0].evaluate  # the previous policy is the base then: its answers count for both
    assert first is not None
    assert step(first.inputs["baseline.previous"]).fingerprint == step(first.inputs["baseline.base"]).fingerprint


def test_checks_are_answered_by_the_new_policy_and_the_first_baseline(folder: Path) -> None:
    (folder / "checks.jsonl").write_text('{"prompt": "2 + 2?"}\n')
    text = SPEC + "evaluate: {checks: {prompts: checks.jsonl, judge: {use: rules, pattern: '4'}}}\n"
    only = plan(folder, text).rounds[0].evaluate
    assert only is not None
    assert key(only.inputs["checked"]) == "round-1/evaluate-checks-judge"
    assert key(only.inputs["baseline_checked"]) == "base/checks-judge"
    assert step(only.inputs["checked"]).config.identity()["judge"] == {"use": "rules", "pattern": "4"}
    assert step(only.inputs["judged"]).config.identity()["judge"] == {"use": "sentiment"}


def test_rounds_answer_with_different_seeds_and_the_held_out_prompts_with_one(folder: Path) -> None:
    steps = by_key(plan(folder, SPEC, "rounds=2"))
    seeds = {name: s.config.identity().get("seed", 0) for name, s in steps.items() if s.stage.name == "rollout"}
    assert seeds["round-1/rollout"] != seeds["round-2/rollout"]
    assert seeds["round-1/evaluate-rollout"] == seeds["round-2/evaluate-rollout"] == seeds["base/heldout-rollout"]
    assert seeds["base/heldout-rollout"] not in (seeds["round-1/rollout"], seeds["round-2/rollout"])


def test_another_seed_is_another_run_of_what_samples_or_trains(folder: Path) -> None:
    one, other = by_key(plan(folder)), by_key(plan(folder, SPEC, "seed=1"))
    same = {name for name in one if one[name].fingerprint == other[name].fingerprint}
    assert same == {"base", "prompts", "heldout"}
    trained = plan(folder, OFFLINE, "seed=2", "train.seed=3").policy
    assert trained.payload["config"] == {"seed": 5}


def test_samples_for_training_and_for_evaluation_are_set_apart(folder: Path) -> None:
    steps = by_key(plan(folder, SPEC, "rollout.samples=6", "evaluate.samples=3"))
    assert steps["round-1/rollout"].payload["config"]["samples"] == 6
    assert steps["round-1/evaluate-rollout"].payload["config"]["samples"] == 3


def test_an_adapter_is_served_on_what_it_was_trained_on(folder: Path) -> None:
    steps = by_key(plan(folder, SPEC + "train: {lora: {rank: 4}}\n", "rounds=2"))
    assert "adapter_base" not in steps["round-1/rollout"].inputs
    assert "adapter_base" not in steps["base/heldout-rollout"].inputs
    assert key(steps["round-1/evaluate-rollout"].inputs["adapter_base"]) == "base"
    assert key(steps["round-2/rollout"].inputs["adapter_base"]) == "base"
    assert key(steps["round-2/evaluate-rollout"].inputs["adapter_base"]) == "round-1/train"


def test_an_adapter_trained_from_the_base_is_served_on_the_base(folder: Path) -> None:
    steps = by_key(plan(folder, SPEC + "train: {lora: {rank: 4}}\niterate: {initial: base}\n", "rounds=2"))
    assert key(steps["round-2/evaluate-rollout"].inputs["adapter_base"]) == "base"


def test_full_training_and_promoted_policies_have_no_adapter_base(folder: Path) -> None:
    full = by_key(plan(folder, SPEC, "rounds=2"))
    assert not any("adapter_base" in s.inputs for s in full.values())
    gated = by_key(plan(folder, SPEC + GATE + "train: {lora: {rank: 4}}\n", "rounds=2"))
    assert "adapter_base" not in gated["round-2/rollout"].inputs


@pytest.mark.parametrize(
    "override", ["train.beta=0.5", "train.learning_rate=0.1", "train.batch_size=4", "train.epochs=3", "train.lora={}"]
)
def test_what_a_sweep_varies_leaves_data_and_reference_alone(folder: Path, override: str) -> None:
    one, other = plan(folder).rounds[0], plan(folder, SPEC, override).rounds[0]
    assert one.prepare.fingerprint == other.prepare.fingerprint
    assert step(one.train.inputs["reference"]).fingerprint == step(other.train.inputs["reference"]).fingerprint
    assert one.train.fingerprint != other.train.fingerprint


def test_resources_change_no_fingerprint_and_reach_their_steps(folder: Path) -> None:
    text = "resources: {train: {workers: 2}, rollout: {cpus: 3}, reference: {workers: 4}}\n"
    one, other = plan(folder), plan(folder, SPEC + text)
    assert [s.fingerprint for s in one.steps] == [s.fingerprint for s in other.steps]
    steps = by_key(other)
    assert steps["round-1/train"].resources.workers == 2
    assert steps["round-1/rollout"].resources.cpus == 3
    assert steps["round-1/reference"].resources.workers == 4


def test_name_and_number_of_rounds_leave_the_rounds_before_alone(folder: Path) -> None:
    one, two = plan(folder), plan(folder, SPEC, "rounds=2", "name=other")
    assert one.policy.fingerprint == two.rounds[0].policy.fingerprint


def test_the_same_data_in_another_place_is_the_same_plan(tmp_path: Path) -> None:
    plans = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        plans.append(plan(workspace.make(tmp_path / name)))
    assert plans[0].policy.fingerprint == plans[1].policy.fingerprint


def test_other_prompts_are_another_plan(folder: Path) -> None:
    before = by_key(plan(folder))
    (folder / "train.jsonl").write_text('{"prompt": "Something else."}\n')
    after = by_key(plan(folder))
    assert before["round-1/rollout"].fingerprint != after["round-1/rollout"].fingerprint
    assert before["base"].fingerprint == after["base"].fingerprint


def test_one_engine_answers_for_the_policies_of_all_rounds(folder: Path) -> None:
    tokens = "iterate: {train: {2: {peft: {peft_type: PROMPT_TUNING, num_virtual_tokens: 4}}}}\n"
    made = plan(folder, SPEC + "rounds: 2\n" + tokens).steps
    assert {step.config.engine for step in made if step.stage.name == "rollout"} == {"transformers"}  # type: ignore[attr-defined]


ENSEMBLE = """\
judge:
  use: ensemble
  margin: 0.5
  judges: [{use: sentiment}, {use: llm, endpoint: {url: "http://host/v1", model: m}}]
"""


def test_the_judges_of_an_ensemble_are_steps_that_vote(folder: Path) -> None:
    planned = plan(folder, SPEC.replace("judge: {use: sentiment}\n", "") + ENSEMBLE)
    steps = by_key(planned)
    voted = steps["round-1/judge"]
    assert voted.config.identity() == {"margin": 0.5}
    assert {name: key(value) for name, value in voted.inputs.items()} == {
        "judged.0": "round-1/judge-0", "judged.1": "round-1/judge-1",
    }  # fmt: skip
    assert key(steps["round-1/pair"].inputs["judgements"]) == "round-1/judge"
    evaluate = planned.rounds[0].evaluate
    assert evaluate is not None
    compared = step(evaluate.inputs["verdicts.base"])
    assert {name: key(value) for name, value in compared.inputs.items()} == {
        "judged.0": "round-1/evaluate-base-0", "against.0": "round-1/evaluate-base-0-against",
        "verdicts.1": "round-1/evaluate-base-1",
    }  # fmt: skip
    assert step(compared.inputs["verdicts.1"]).stage.name == "compare"


REVISE = 'revise: {endpoint: {url: "http://host/v1", model: m}, constitution: [Be kind.]}\n'


def test_revised_answers_are_pairs_beside_the_judged_ones(folder: Path) -> None:
    only = plan(folder, SPEC + REVISE).rounds[0]
    assert {name: key(value) for name, value in only.prepare.inputs.items()} == {
        "pairs.0": "round-1/encode", "pairs.1": "round-1/encode-revised",
    }  # fmt: skip
    revised = step(step(only.prepare.inputs["pairs.1"]).inputs["pairs"])
    assert {name: key(value) for name, value in revised.inputs.items()} == {"rollouts": "round-1/rollout"}


def test_revised_answers_need_no_judge(folder: Path) -> None:
    text = SPEC.replace("judge: {use: sentiment}\n", "").replace(", heldout: heldout.jsonl", "") + REVISE
    only = plan(folder, text).rounds[0]
    assert {key(value) for value in only.prepare.inputs.values()} == {"round-1/encode-revised"}


@pytest.mark.parametrize("text", ["evaluate: {kl: true}\n", "evaluate: {promote_if: {max_kl: 10}}\n"])
def test_the_kl_is_that_from_the_reference_of_the_training(text: str, folder: Path) -> None:
    planned = plan(folder, SPEC + text, "rounds=2")
    last = planned.rounds[1].evaluate
    assert last is not None
    ratios = step(last.inputs["log_ratios"])
    assert {name: key(value) for name, value in ratios.inputs.items()} == {
        "rollouts": "round-2/evaluate-rollout", "model": "round-2/train",
        "reference": planned.rounds[0].policy.key,
    }  # fmt: skip
    assert ratios.config.identity()["judge"] == {"use": "implicit_reward", "beta": 1.0}
    assert "log_ratios" not in evaluated(plan(folder, SPEC)).inputs


def evaluated(planned: Plan) -> Step:
    found = planned.rounds[0].evaluate
    assert found is not None
    return found


def test_another_model_can_be_the_baseline(folder: Path) -> None:
    (folder / "other").mkdir()
    for file in (folder / "model").iterdir():
        (folder / "other" / file.name).write_bytes(file.read_bytes() + b" ")
    found = evaluated(plan(folder, SPEC + "evaluate: {against: [{model: other}, base]}\n"))
    answers = step(found.inputs["baseline.other"])
    other = step(answers.inputs["policy"])
    assert (other.key, other.stage.name) == ("against/other", "materialise")
    assert other.fingerprint != step(step(found.inputs["baseline.base"]).inputs["policy"]).fingerprint
    assert found.config.identity()["against"] == ["other", "base"]


def test_baselines_of_one_name_are_told_apart() -> None:
    sources = [{"model": "base"}, {"model": "a/b", "revision": "x"}, {"model": "a/b", "revision": "y"}]
    settings = EvaluateSpec.model_validate({"against": ["base", *sources]})
    assert settings.baselines == ("base", "base (2)", "a/b x", "a/b y")
