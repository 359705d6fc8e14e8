"""Files, models and plugins that a spec names: what is wrong with them is known before anything starts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.plan import rounds
from pipelines.plan.steps import Source
from tests.unit import workspace
from tests.unit.workspace import OFFLINE, SPEC


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return workspace.make(tmp_path)


@pytest.fixture
def plugins(folder: Path) -> Iterator[Path]:
    """The folder, whose modules are forgotten after the test."""
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        del sys.modules[name]


def judged_by(use: str, options: str = "{}") -> str:
    return SPEC.replace("{use: sentiment}", f'{{use: "{use}", options: {options}}}')


# Data files


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (SPEC.replace("train.jsonl", "nope.jsonl"), "spec.yaml:3 prompts.train"),
        (SPEC.replace("heldout.jsonl", "nope.jsonl"), "spec.yaml:3 prompts.heldout"),
        (SPEC + "preferences:\n  - pairs.jsonl\n  - nope.jsonl\n", "spec.yaml:7 preferences.1"),
    ],
)
def test_a_missing_file_is_named(folder: Path, text: str, where: str) -> None:
    problem = workspace.only(folder, text)
    assert problem.where == where
    assert problem.message.startswith(f"{folder / 'nope.jsonl'} does not exist")


def test_a_folder_without_prompts_is_refused(folder: Path) -> None:
    problem = workspace.only(folder, SPEC.replace("train.jsonl", "model"))
    assert problem.where == "spec.yaml:3 prompts.train"
    assert "no usable row in model" in problem.message


@pytest.mark.parametrize("name", ["a" * 5000, "~nobody-of-that-name/x.jsonl", '"a\\0b"'])
def test_a_hostile_file_name_is_refused(folder: Path, name: str) -> None:
    assert workspace.only(folder, SPEC.replace("train.jsonl", name)).where == "spec.yaml:3 prompts.train"


def test_paths_begin_at_the_folder_of_the_spec(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    loaded = workspace.loaded(folder)
    sources = [value for step in rounds.plan(loaded.spec, folder).steps for value in step.inputs.values()]
    assert folder / "heldout.jsonl" in [value.path for value in sources if isinstance(value, Source)]


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff\n"])
def test_an_empty_prompts_file_is_refused(folder: Path, content: str) -> None:
    (folder / "train.jsonl").write_text(content)
    problem = workspace.only(folder)
    assert problem.where == "spec.yaml:3 prompts.train"
    assert "no usable row in train.jsonl" in problem.message


def test_a_file_without_one_usable_row_is_refused_with_its_first_fault(folder: Path) -> None:
    (folder / "pairs.jsonl").write_text('\n{"prompt": "Hi", "chosen": "Hello!"}\nnot json\n')
    problem = workspace.only(folder, OFFLINE)
    assert problem.where == "spec.yaml:3 preferences.0"
    assert "no usable row in pairs.jsonl" in problem.message
    assert "pairs.jsonl:2 " in problem.message


@pytest.mark.parametrize(
    "row",
    [
        '{"prompt": 3}', "[]", "not json", '{"prompt": ""}', "\udce9", "[" * 5000, '{"prompt": "\\ud800"}',
        '{"prompt": ' + "1" * 5000 + "}", '{"prompt": [{"role": "user"}]}', "\0",
    ],
)  # fmt: skip
def test_an_unusable_row_is_noted_and_stops_nothing(folder: Path, row: str) -> None:
    with (folder / "train.jsonl").open("ab") as file:
        file.write(row.encode("utf-8", "surrogateescape") + b"\n")
    (note,) = workspace.loaded(folder).notes
    assert "1 unusable rows of train.jsonl" in note
    assert "train.jsonl:3 " in note


def test_held_out_prompts_that_stand_in_training_are_named(folder: Path) -> None:
    """Case and white space do not make another prompt."""
    (folder / "heldout.jsonl").write_text('{"prompt": "How are you?"}\n{"prompt": "name  A colour. "}\n')
    problem = workspace.only(folder)
    assert problem.where == "spec.yaml:3 prompts.heldout"
    assert problem.message.startswith("1 held-out prompts (")
    assert "are also in training" in problem.message
    assert "heldout.jsonl:2" in problem.message
    assert "train.jsonl:1" in problem.message
    assert "How are you?" not in problem.message


def test_held_out_prompts_in_the_given_pairs_are_told(folder: Path) -> None:
    """Their pairs are left out of training, so this stops nothing."""
    (folder / "heldout.jsonl").write_text('{"prompt": [{"role": "user", "content": "HI"}]}\n')
    (note,) = workspace.loaded(folder, SPEC + "preferences: [pairs.jsonl]\n").notes
    assert note.startswith("1 held-out prompts (heldout.jsonl:1")
    assert "pairs.jsonl:1" in note
    assert note.endswith("their pairs are not trained on")


def test_many_held_out_prompts_in_training_are_counted(folder: Path) -> None:
    rows = "".join(f'{{"prompt": "Question {i}"}}\n' for i in range(40))
    (folder / "heldout.jsonl").write_text(rows)
    (folder / "train.jsonl").write_text(rows)
    message = workspace.only(folder).message
    assert message.startswith("40 held-out prompts")
    assert "35 more" in message


# Sections that have to fit together


def spread(size: int, workers: str) -> str:
    return f"{SPEC}train:\n  batch_size: {size}\nresources: {{train: {{workers: {workers}}}}}\n"


@pytest.mark.parametrize(("size", "workers"), [(2, "3"), (1, "3"), (2, "[1, 3]")])
def test_a_batch_that_leaves_a_worker_without_work_is_refused(folder: Path, size: int, workers: str) -> None:
    problem = workspace.only(folder, spread(size, workers))
    assert problem.where == "spec.yaml:6 train.batch_size"
    assert f"{size} pairs" in problem.message
    assert problem.message.endswith("use 3 or more")


@pytest.mark.parametrize(("size", "workers", "noted"), [(10, "3", True), (10, "[2, 4]", True), (9, "[1, 3]", False)])
def test_a_batch_that_does_not_divide_among_the_workers_is_noted(
    folder: Path, size: int, workers: str, noted: bool
) -> None:
    notes = workspace.loaded(folder, spread(size, workers)).notes
    assert any(f"train.batch_size {size} does not divide" in note for note in notes) is noted


@pytest.mark.parametrize("workers", ["[2, 1]", "[0, 2]", "[1, 2, 3]", "[]", "0", "yes", "1.5", "[1, two]"])
def test_workers_are_a_number_or_the_fewest_and_the_most(folder: Path, workers: str) -> None:
    problem = workspace.only(folder, spread(12, workers))
    assert problem.where == "spec.yaml:7 resources.train.workers"
    assert "fewest" in problem.message
    assert "got" in problem.message


@pytest.mark.parametrize(
    ("train", "lacking"),
    [
        ("", "strategy: fsdp and workers: 2 or more and gpus: 1"),
        ("strategy: fsdp, gpus: 1", "workers: 2 or more"),
        ("strategy: fsdp, gpus: 1, workers: [1, 4]", "workers: 2 or more"),
        ("strategy: ddp, gpus: 1, workers: 2", "strategy: fsdp"),
        ("strategy: fsdp, workers: 2", "gpus: 1"),
    ],
)
def test_only_shares_on_gpus_are_offloaded(folder: Path, train: str, lacking: str) -> None:
    settings = ", ".join(filter(None, ["offload: true", train]))
    problem = workspace.only(folder, f"{SPEC}resources:\n  train: {{{settings}}}\n")
    assert problem.where == "spec.yaml:6 resources.train.offload"
    assert problem.message.endswith(f"; set {lacking} beside it, or leave it out")


def test_workers_of_a_training_do_not_share_a_gpu(folder: Path) -> None:
    problem = workspace.only(folder, f"{SPEC}resources:\n  train: {{workers: [1, 2], gpus: 0.5}}\n")
    assert problem.where == "spec.yaml:6 resources.train.gpus"
    assert problem.message.endswith("set gpus: 1, or workers: 1")
    for train in ("{workers: 2, gpus: 1}", "{workers: 1, gpus: 0.5}", "{workers: 2}"):
        assert workspace.loaded(folder, f"{SPEC}resources: {{train: {train}}}\n")


def test_offloaded_shares_are_no_problem(folder: Path) -> None:
    train = "{offload: true, strategy: fsdp, workers: [2, 4], gpus: 1}"
    assert workspace.loaded(folder, f"{SPEC}resources: {{train: {train}}}\n").spec.resources.train.offload


@pytest.mark.parametrize(
    ("train", "where"),
    [
        ("{optimizer: adamw_8bit}", "train.optimizer"),
        ("{quantization: 8bit, lora: {rank: 4}}", "train.quantization"),
    ],
)
def test_8_bit_state_is_not_shared_out(folder: Path, train: str, where: str) -> None:
    found = workspace.refused(folder, f"{SPEC}train: {train}\nresources: {{train: {{strategy: fsdp, workers: 2}}}}\n")
    problems = [problem for problem in found if "resources.train.strategy: fsdp" in problem.message]
    assert [problem.where for problem in problems] == [f"spec.yaml:5 {where}"]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("name: tiny\npolicy: {model: model}\n", "spec.yaml prompts.train"),
        (SPEC.replace("judge: {use: sentiment}\n", ""), "spec.yaml judge"),
        (OFFLINE + "rounds: 2\n", "spec.yaml:4 rounds"),
        (OFFLINE + "evaluate: {promote_if: {win_rate: 0.5}}\n", "spec.yaml:4 evaluate.promote_if"),
        (SPEC + "rollout: {samples: 1}\n", "spec.yaml:5 rollout.samples"),
    ],
)
def test_sections_that_need_each_other(folder: Path, text: str, where: str) -> None:
    assert workspace.only(folder, text).where == where


# Models


@pytest.mark.parametrize(
    ("gone", "part"),
    [
        ("config.json", "no config.json"),
        ("tokenizer.json", "no tokenizer"),
        ("chat_template.jinja", "no chat template"),
        ("model.safetensors", "no *.safetensors weights"),
    ],
)
def test_an_incomplete_model_folder_is_refused(folder: Path, gone: str, part: str) -> None:
    (folder / "model" / gone).unlink()
    problem = workspace.only(folder)
    assert problem.where == "spec.yaml:2 policy.model"
    assert part in problem.message
    assert str(folder / "model") in problem.message


def test_weights_that_can_run_code_are_no_weights(folder: Path) -> None:
    (folder / "model" / "model.safetensors").rename(folder / "model" / "pytorch_model.bin")
    assert "no *.safetensors weights" in workspace.only(folder).message


@pytest.mark.parametrize(("config", "enough"), [('{"chat_template": "x"}', True), ("{}", False), ("[", False)])
def test_a_chat_template_may_stand_in_the_tokenizers_configuration(folder: Path, config: str, enough: bool) -> None:
    (folder / "model" / "chat_template.jinja").unlink()
    (folder / "model" / "tokenizer_config.json").write_text(config)
    if enough:
        workspace.loaded(folder)
    else:
        assert "no chat template" in workspace.only(folder).message


@pytest.mark.parametrize(
    ("model", "part"),
    [
        ("./nowhere", "no such folder"),
        ("train.jsonl", "expected a folder or a .gguf file"),
        ('""', "at least 1 character"),
        ("owner/name", "name its revision"),
        ('"a\\0b"', "null"),
        ('"pkg://no_such_package/x.gguf"', "'no_such_package' is not installed"),
    ],
)
def test_a_model_that_cannot_be_is_refused(folder: Path, model: str, part: str) -> None:
    problem = workspace.only(folder, SPEC.replace("model: model", f"model: {model}"))
    assert problem.where == "spec.yaml:2 policy.model"
    assert part in problem.message


# Plugins


def test_a_judge_beside_the_spec_is_found(plugins: Path) -> None:
    (plugins / "judge_beside.py").write_text("def MyJudge(strict):\n    pass\n")
    found = workspace.loaded(plugins, judged_by("judge_beside:MyJudge", "{strict: true}"))
    assert found.spec.judge is not None
    assert found.spec.judge.model_dump(exclude_defaults=True) == {
        "use": "judge_beside:MyJudge",
        "options": {"strict": True},
    }


@pytest.mark.parametrize(
    ("use", "part"),
    [
        ("judge_nowhere:MyJudge", "no module 'judge_nowhere'"),
        ("judge_nowhere.inner:MyJudge", "no module 'judge_nowhere'"),
        ("judge_bad:Other", "has no 'Other'"),
        ("judge_bad:NUMBER", "is not a class or function"),
        ("judge_broken:MyJudge", "ZeroDivisionError"),
        ("judge_exits:MyJudge", "SystemExit"),
        ("judge bad:MyJudge", "got 'judge bad:MyJudge'"),
        ("judge_bad:My.Judge", "got 'judge_bad:My.Judge'"),
        (":", "got ':'"),
    ],
)
def test_a_judge_that_cannot_be_imported_is_refused(plugins: Path, use: str, part: str) -> None:
    (plugins / "judge_bad.py").write_text("NUMBER = 3\n")
    (plugins / "judge_broken.py").write_text("1 / 0\n")
    (plugins / "judge_exits.py").write_text("import sys\nsys.exit(0)\n")
    problem = workspace.only(plugins, judged_by(use))
    assert problem.where == "spec.yaml:4 judge.use"
    assert part in problem.message


def test_a_judge_without_source_is_refused(plugins: Path) -> None:
    """Its identity cannot be known; the plan would have nothing to hash."""
    assert workspace.only(plugins, judged_by("time:sleep")).where == "spec.yaml:4 judge.use"


@pytest.mark.parametrize("value", [".nan", ".inf", '"\\ud800"'])
def test_options_without_an_exact_written_form_are_refused(plugins: Path, value: str) -> None:
    (plugins / "judge_options.py").write_text("def MyJudge(bound):\n    pass\n")
    problem = workspace.only(plugins, judged_by("judge_options:MyJudge", f"{{bound: {value}}}"))
    assert problem.where.startswith("spec.yaml:4 judge.options")


def test_another_option_is_another_run(plugins: Path) -> None:
    (plugins / "judge_options.py").write_text("def MyJudge(bound):\n    pass\n")
    fingerprints = set()
    for value in ("1", "2", "'1'", "null", "[]"):
        spec = workspace.loaded(plugins, judged_by("judge_options:MyJudge", f"{{bound: {value}}}")).spec
        fingerprints.add(rounds.plan(spec, plugins).policy.fingerprint)
    assert len(fingerprints) == 5


LABELLED = """\
{"prompt": "Hi", "chosen": "Hello!", "rejected": "No."}
{"prompt": "Yo", "completion": "Hey", "label": true}
"""


def test_single_answers_are_refused_by_a_loss_that_needs_pairs(folder: Path) -> None:
    (folder / "pairs.jsonl").write_text(LABELLED)
    problem = workspace.only(folder, workspace.OFFLINE)
    assert problem.where == "spec.yaml:3 preferences.0"
    assert "1 rows have one answer with a label (first: pairs.jsonl:2)" in problem.message
    assert "loss: kto or bco" in problem.message


def test_single_answers_are_taken_and_counted_by_a_loss_for_them(folder: Path) -> None:
    (folder / "pairs.jsonl").write_text(LABELLED)
    found = workspace.loaded(folder, workspace.OFFLINE + "train: {loss: kto}\n")
    assert "1 rows are single answers with a label; first: pairs.jsonl:2" in found.notes


@pytest.mark.parametrize(("labels", "told"), [(("true", "true"), True), (("true", "false"), False)])
def test_labels_that_are_all_the_same_are_told(folder: Path, labels: tuple[str, str], told: bool) -> None:
    rows = [f'{{"prompt": "Hi", "completion": "{n}", "label": {label}}}\n' for n, label in enumerate(labels)]
    (folder / "pairs.jsonl").write_text("".join(rows))
    notes = workspace.loaded(folder, workspace.OFFLINE + "train: {loss: kto}\n").notes
    assert any("all of them are labelled true" in note for note in notes) is told


def test_a_beta_that_does_nothing_with_simpo_is_told(folder: Path) -> None:
    notes = [workspace.loaded(folder, f"{OFFLINE}train: {{loss: simpo, beta: {beta}}}\n").notes for beta in (0.1, 2.5)]
    assert [len(each) for each in notes] == [1, 0]
    assert "train.beta 0.1" in notes[0][0]


def test_too_many_unusable_rows_are_refused(folder: Path) -> None:
    row = (folder / "pairs.jsonl").read_text()
    (folder / "pairs.jsonl").write_text(row * 2 + "nonsense\n")
    problem = workspace.only(folder, OFFLINE)
    assert problem.where == "spec.yaml:3 preferences.0"
    assert "1 of 3 rows cannot be used, more than data.max_bad_share 0.2; first: pairs.jsonl:3" in problem.message
    notes = workspace.loaded(folder, OFFLINE + "data: {max_bad_share: 0.4}\n").notes
    assert any("1 unusable rows of pairs.jsonl" in note for note in notes)


@pytest.mark.parametrize(("probability", "fault"), [("1.5", True), ("-0.1", True), ("0.5", False)])
def test_probabilities_outside_0_and_1_in_all_rows_are_refused(folder: Path, probability: str, fault: bool) -> None:
    row = '{"prompt": "Hi", "chosen": "a", "rejected": "b", "preference_probability": ' + probability + "}\n"
    (folder / "pairs.jsonl").write_text(row)
    if fault:
        found = workspace.only(folder, workspace.OFFLINE).message
        assert "preference_probability: expected a number from 0 to 1" in found
    else:
        workspace.loaded(folder, workspace.OFFLINE)
