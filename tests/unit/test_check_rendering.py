"""``rondo check`` writes the first rows by the policy's own template: what it does to them is said before a run."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.spec import load
from pipelines.spec.checks import template
from pipelines.spec.problems import SpecError
from stages.core.tokens.templates import ChatEncoder
from tests import specs, tiny

_TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
HEADER = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
LOOSE = {"rollout": {"max_length": 400, "max_tokens": 50}, "prepare": {"max_length": 400}}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.save(tmp_path / "model")


def written(model: Path, template: str) -> None:
    (model / "chat_template.jinja").write_text(template)


def said(folder: Path, model: Path, rows: list[dict[str, Any]], **sections: Any) -> tuple[str, ...]:
    """What a check says of pairs, short of refusing them."""
    spec = specs.offline(folder, model, **{**LOOSE, **sections})
    specs.jsonl(folder / "pairs.jsonl", rows)
    return load.load(str(spec)).look()[0].notes


def refused(folder: Path, model: Path, rows: list[dict[str, Any]], **sections: Any) -> str:
    with pytest.raises(SpecError) as caught:
        said(folder, model, rows, **sections)
    return str(caught.value)


def test_rows_are_shown_as_the_model_will_see_them(tmp_path: Path, model: Path) -> None:
    spec = specs.offline(
        tmp_path, model, 3, **LOOSE, prompts={"train": "prompts.jsonl"}, judge={"use": "rules", "max_words": 3}
    )
    specs.jsonl(tmp_path / "prompts.jsonl", [{"prompt": "Two\nlines \u001b[2J."}, {"prompt": "More."}])
    done = CliRunner().invoke(app, ["check", str(spec), "--show", "1"])
    assert done.exit_code == 0, done.output
    row = specs.pairs(1)[0]
    lengths = [len(ChatEncoder(tiny.tokenizer()).prompt([{"role": "user", "content": text}]))
               for text in (row["prompt"], "Two\nlines \u001b[2J.")]  # fmt: skip
    assert done.output.splitlines()[:14] == [
        "pairs.jsonl:1", f"  prompt: {lengths[0]} tokens, not trained on", "    | <|im_start|>user",
        f"    | {row['prompt']}<|im_end|>", "    | <|im_start|>assistant", "    | ",
        f"  chosen: {len(row['chosen']) + 1} tokens, trained on", f"    | {row['chosen']}<|im_end|>",
        f"  rejected: {len(row['rejected']) + 1} tokens, trained on", f"    | {row['rejected']}<|im_end|>",
        "prompts.jsonl:1", f"  prompt: {lengths[1]} tokens, not trained on", "    | <|im_start|>user", "    | Two",
    ]  # fmt: skip
    assert "    | lines \\x1b[2J.<|im_end|>" in done.output.splitlines()
    assert "pairs.jsonl:2" not in done.output


def test_what_the_template_refuses_is_named(tmp_path: Path, model: Path) -> None:
    written(
        model,
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + _TURNS + HEADER,
    )
    rows = specs.pairs(10)
    rows[4]["system"] = "Be brief."
    (note,) = said(tmp_path, model, rows)
    assert "1 of the first 10 rows of pairs.jsonl cannot be used; first: pairs.jsonl:5" in note
    assert "no system turn" in note
    rows[7]["system"] = rows[8]["system"] = "Be brief."
    message = refused(tmp_path, model, rows)
    assert "spec.yaml:" in message
    assert "preferences.0: 3 of the first 10 rows" in message
    assert "more than data.max_bad_share 0.2 allows" in message
    assert said(tmp_path, model, rows, data={"max_bad_share": 0.3})


def test_what_the_template_makes_equal_is_named(tmp_path: Path, model: Path) -> None:
    written(model, _TURNS + HEADER)
    rows = [*specs.pairs(8), {"prompt": "Q", "chosen": "Yes.", "rejected": "Yes. \n"}]
    (note,) = said(tmp_path, model, rows)
    assert "pairs.jsonl:9 rejected: the same as chosen once the chat template has written both" in note


def test_rows_that_are_too_long_are_counted(tmp_path: Path, model: Path) -> None:
    rows = specs.pairs(9)
    rows[3]["prompt"] = "long " * 80
    (note,) = said(tmp_path, model, rows)
    assert "pairs.jsonl:4 4" in note
    assert "tokens, more than 400" in note
    assert not said(tmp_path, model, rows, prepare={"max_length": 400, "truncation": "keep_end"})


def test_what_the_template_leaves_out_is_named(tmp_path: Path, model: Path) -> None:
    written(model, _TURNS.replace("%}<|im_start|>", "if m.role != 'system' %}<|im_start|>", 1) + HEADER)
    rows = [
        {**row, "system": "Be brief.", "tools": [{"name": "add"}],
         "chosen": [{"role": "assistant", "content": row["chosen"], "reasoning_content": "Hm."}]}
        for row in specs.pairs(5)
    ]  # fmt: skip
    notes = said(tmp_path, model, rows)
    assert [note.partition(": ")[2] for note in notes] == [
        "the chat template leaves out text of 5 system turns; first: pairs.jsonl:1",
        "the chat template does not read reasoning_content, which 5 messages have; first: pairs.jsonl:1",
        "the chat template does not read tools, which 5 messages have; first: pairs.jsonl:1",
    ]


@pytest.mark.parametrize(
    ("template", "note"),
    [
        ("{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}", "no end of turn behind"),
        (_TURNS + "{{ '<|im_start|>assistant\\n' }}", "writes '<|im_start|>assistant' behind an answer's end of turn"),
    ],
)  # fmt: skip
def test_how_answers_end_is_said_where_it_is_odd(template: str, note: str, tmp_path: Path, model: Path) -> None:
    written(model, template)
    (found,) = said(tmp_path, model, specs.pairs(3))
    assert note in found


def test_a_template_that_writes_the_date_needs_one(tmp_path: Path, model: Path) -> None:
    template = "{{ strftime_now('%d %b %Y') }}: " + tiny.TEMPLATE
    written(model, template)
    message = refused(tmp_path, model, specs.pairs(3))
    assert "policy.date: the chat template writes today's date" in message
    assert f"such as date: {datetime.date.today().isoformat()}" in message
    policy = {"model": str(model), "date": datetime.date(2026, 1, 31)}
    assert not said(tmp_path, model, specs.pairs(3), policy=policy)
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    ids = ChatEncoder(tokenizer, datetime.date(2026, 1, 31)).prompt([{"role": "user", "content": "Hi"}])
    assert tokenizer.decode(ids).startswith("31 Jan 2026: ")


def test_sizes_that_do_not_fit_are_named_with_their_numbers(tmp_path: Path, model: Path) -> None:
    (note,) = said(tmp_path, model, specs.pairs(3), prepare={"max_length": 513})
    assert note == "prepare.max_length 513 is above the model's max_position_embeddings 512"
    specs.jsonl(tmp_path / "prompts.jsonl", specs.prompts(2))
    sections = {"prompts": {"train": "prompts.jsonl"}, "judge": {"use": "rules", "max_words": 3}}
    message = refused(tmp_path, model, specs.pairs(3), **sections, rollout={"max_length": 513})
    assert "rollout.max_length: 513 is above the model's max_position_embeddings 512" in message

    tokenizer = json.loads((model / "tokenizer.json").read_text())
    token = {"content": "<extra>", "special": True, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False}  # fmt: skip
    tokenizer["added_tokens"].append({"id": 259, **token})
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    (note,) = said(tmp_path, model, specs.pairs(3))
    assert note == "the tokenizer has ids up to 259, the embedding has 259 rows"
    written(model, "<extra>" + tiny.TEMPLATE)
    assert "token id 259 is not among the embedding's 259 rows" in refused(tmp_path, model, specs.pairs(3))


def test_an_adapters_template_is_the_one_that_counts(tmp_path: Path, model: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    (adapter / "chat_template.jinja").write_text("{{ raise_exception('the adapter says no') }}")
    policy = {"model": str(model), "adapter": str(adapter)}
    assert "the adapter says no" in refused(tmp_path, model, specs.pairs(3), policy=policy)


def test_a_tokenizer_that_cannot_be_read_yet_is_no_mistake(tmp_path: Path, model: Path) -> None:
    (model / "tokenizer.json").write_text("{")
    (note,) = said(tmp_path, model, specs.pairs(3))
    assert note.startswith("the chat template cannot be looked at before the run: ")


def test_a_run_looks_at_rows_before_anything_starts(tmp_path: Path, model: Path) -> None:
    written(model, "{{ raise_exception('no') }}")
    spec = specs.offline(tmp_path, model, **LOOSE)
    done = CliRunner().invoke(app, ["run", str(spec), "--store", str(tmp_path / "store")])
    assert done.exit_code == 2, done.output
    assert "nothing was started" in done.output


def test_it_needs_neither_torch_nor_ray(tmp_path: Path, model: Path) -> None:
    spec = specs.offline(tmp_path, model, **LOOSE)
    program = f"""
import sys
from pipelines.cli import app
try:
    app(["check", {str(spec)!r}, "--show", "1"])
except SystemExit as end:
    assert end.code == 0, end.code
print(sorted({{"torch", "ray", "vllm"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
    assert "pairs.jsonl:1" in done.stdout


def test_a_base_without_a_template_may_have_its_adapters(tmp_path: Path, model: Path) -> None:
    (model / "chat_template.jinja").unlink()
    assert "no chat template" in refused(tmp_path, model, specs.pairs(3))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    (adapter / "chat_template.jinja").write_text(tiny.TEMPLATE)
    assert not said(tmp_path, model, specs.pairs(3), policy={"model": str(model), "adapter": str(adapter)})


def test_a_hub_models_family_is_looked_at_too(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its configuration is there once the tokenizer has been fetched."""
    monkeypatch.setattr(template, "_downloaded", lambda hub_id, revision: model)
    policy = {"model": "owner/name", "revision": "main"}
    assert not said(tmp_path, model, specs.pairs(3), policy=policy)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    train = {"lora": {"rank": 4, "target_modules": ["out_proj"]}}
    assert "train.lora.target_modules: out_proj" in refused(tmp_path, model, specs.pairs(3), policy=policy, train=train)
    (model / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    assert "policy.model: bert reads text in both directions" in refused(tmp_path, model, specs.pairs(3), policy=policy)


def test_a_pointer_in_place_of_weights_is_named(tmp_path: Path, model: Path) -> None:
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    config = json.loads((model / "config.json").read_text())
    del config["tie_word_embeddings"]
    (model / "config.json").write_text(json.dumps({**config, "text_config": None}))
    train = {"lora": {"rank": 4, "target_modules": ["lm_head"]}}
    assert "is a Git LFS pointer" in refused(tmp_path, model, specs.pairs(3), train=train)


def test_a_template_that_wants_an_answer_takes_prompts(tmp_path: Path, model: Path) -> None:
    guard = (
        "{% if not add_generation_prompt and messages[-1].role != 'assistant' %}{{ raise_exception('no') }}{% endif %}"
    )
    written(model, guard + _TURNS + HEADER)
    specs.jsonl(tmp_path / "prompts.jsonl", specs.prompts(2))
    sections = {"prompts": {"train": "prompts.jsonl"}, "judge": {"use": "rules", "max_words": 3}}
    assert not said(tmp_path, model, specs.pairs(3), **sections)


def test_what_comes_from_data_cannot_steer_a_terminal(tmp_path: Path, model: Path) -> None:
    spec = specs.offline(tmp_path, model, **LOOSE)
    specs.jsonl(tmp_path / "pairs.jsonl", [{**row, "col\x1b]0;owned\x07": 1} for row in specs.pairs(3)])
    done = CliRunner().invoke(app, ["check", str(spec)])
    assert done.exit_code == 0
    assert "\\x1b]0;owned\\x07" in done.output
    assert "\x1b" not in done.output
    specs.jsonl(tmp_path / "pairs.jsonl", [{"a\x1b[2J": 1}])
    done = CliRunner().invoke(app, ["check", str(spec)])
    assert done.exit_code == 2
    assert "\x1b" not in done.output
