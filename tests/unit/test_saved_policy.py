"""A stored policy is the base's folder with other weights, and it is the policy that was trained."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftLora
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM

from stages.base import StageError
from stages.core.records import SHARD, Message
from stages.core.tokens.templates import ChatEncoder
from stages.data.shards import ShardData
from stages.io import filenames
from stages.io.artifact import Artifact
from stages.io.filenames import ADAPTER, MODEL
from stages.policy import convert
from stages.policy.config import MaterialiseConfig
from stages.policy.files import copy_model, name_for_older_readers
from stages.policy.load import load_encoder, load_model
from stages.policy.save import save_model, weights_dtype
from stages.train import proof
from stages.train.config import LoraConfig, TrainConfig
from stages.train.policy import build_policy, save_policy
from tests import artifacts, tiny
from tests.memory import random_pairs

CPU = torch.device("cpu")
CONFIGS = {"full": TrainConfig(), "lora": TrainConfig(lora=LoraConfig(rank=4)),
           "prompts": TrainConfig(peft={"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3})}  # fmt: skip
EXTRA: dict[str, Any] = {
    # Llama 2 chat and Vicuna came with this; transformers refuses to write it.
    "generation_config.json": {"temperature": 0.6, "top_p": 0.9, "eos_token_id": 2, "transformers_version": "4.32.0"},
    "special_tokens_map.json": {"eos_token": "<|im_end|>"},
    "preprocessor_config.json": {"odd": True},
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model's folder with files as transformers 4 and others wrote them."""
    folder = tmp_path / "published"
    tiny.model().to(torch.bfloat16).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"rope_theta": config.pop("rope_parameters")["rope_theta"], "torch_dtype": config.pop("dtype")}
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    for name, value in {
        **EXTRA, "config.json": config,
        "tokenizer_config.json": {**tokenizer, "tokenizer_class": "PreTrainedTokenizerFast"},
    }.items():  # fmt: skip
        (folder / name).write_text(json.dumps(value))
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ messages }}")
    (folder / "README.md").write_text("A model.")
    (folder / "LICENSE").write_text("Free.")
    (folder / "code.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    return folder


@pytest.fixture
def initial(base: Path, tmp_path: Path) -> Path:
    """The artifact of the base."""
    convert.convert(MaterialiseConfig(), base, None, tmp_path / "initial")
    return tmp_path / "initial"


def files(folder: Path) -> dict[str, bytes]:
    """All but the weights."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.suffix != ".safetensors"
    }


def moved(model: Any) -> Any:
    """As after some training: every trainable weight is another."""
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_all_but_the_weights_is_as_in_the_base(name: str, base: Path, initial: Path, tmp_path: Path) -> None:
    expected = {file: content for file, content in files(base).items() if file not in ("code.py", "pytorch_model.bin")}
    assert files(initial / MODEL) == expected
    save_policy(moved(build_policy(CONFIGS[name], initial)), CONFIGS[name], initial, tmp_path / "trained")
    assert files(tmp_path / "trained" / MODEL) == expected
    assert expected.keys() >= {*EXTRA, "additional_chat_templates/rag.jinja", "README.md", "LICENSE"}
    (weights,) = (tmp_path / "trained" / MODEL).glob("*.safetensors")
    assert load_file(weights).keys() == load_file(base / "model.safetensors").keys()
    assert weights_dtype(weights.parent) == ("bfloat16" if name == "prompts" else "float32")


def test_the_date_is_kept_for_the_template(base: Path, tmp_path: Path) -> None:
    (base / "chat_template.jinja").write_text("{{ strftime_now('%d.%m.%Y') }}" + tiny.TEMPLATE)
    convert.convert(MaterialiseConfig(date=datetime.date(2026, 1, 31)), base, None, tmp_path / "made")
    encoder = load_encoder(tmp_path / "made")
    assert encoder.tokenizer.decode(encoder.prompt([{"role": "user", "content": "Hi"}])).startswith("31.01.2026")


def test_weights_that_the_model_does_not_load_are_kept(
    initial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of layers that predict several tokens at once; also from a policy that was trained before."""
    monkeypatch.setattr(LlamaForCausalLM, "_keys_to_ignore_on_load_unexpected", [r"^mtp\."])
    file = initial / MODEL / "model.safetensors"
    weights = load_file(file)
    more = {"mtp.0.weight": torch.ones(2, dtype=torch.bfloat16), "unknown": torch.ones(1)}
    save_file({**weights, **more}, file, {"format": "pt"})
    for source, folder in ((initial, tmp_path / "first"), (tmp_path / "first", tmp_path / "second")):
        save_policy(moved(build_policy(CONFIGS["full"], source)), CONFIGS["full"], source, folder)
        assert load_file(folder / MODEL / "untrained.safetensors").keys() == {"mtp.0.weight"}
        index = json.loads((folder / MODEL / "model.safetensors.index.json").read_text())["weight_map"]
        assert index == {**dict.fromkeys(weights, file.name), "mtp.0.weight": "untrained.safetensors"}
        assert load_model(folder, CPU)


def test_no_folder_of_this_machine_is_named_in_it(initial: Path, tmp_path: Path) -> None:
    save_policy(build_policy(CONFIGS["lora"], initial), CONFIGS["lora"], initial, tmp_path / "trained")
    for name, content in files(tmp_path / "trained").items():
        assert str(tmp_path).encode() not in content, name
    assert json.loads((tmp_path / "trained" / ADAPTER / "adapter_config.json").read_text())["r"] == 4


def test_a_configuration_without_a_precision_gets_the_bases(base: Path, initial: Path, tmp_path: Path) -> None:
    config = json.loads((initial / MODEL / "config.json").read_text())
    del config["torch_dtype"]
    (initial / MODEL / "config.json").write_text(json.dumps(config))
    save_model(tiny.model(), initial / MODEL, tmp_path / "new")
    assert json.loads((tmp_path / "new" / "config.json").read_text()) == {**config, "torch_dtype": "bfloat16"}


def adapter(folder: Path, template: str | None) -> Path:
    """An adapter as another training left it, with a tokenizer of its own or without."""
    settings = PeftLora(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(tiny.model(), settings).save_pretrained(folder)
    if template is not None:
        tokenizer = tiny.tokenizer()
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("template", [None, "{{ messages[0].content }}!"])
@pytest.mark.parametrize("inside", [False, True])
def test_an_adapter_brings_its_tokenizer_and_template_along(
    template: str | None, inside: bool, base: Path, tmp_path: Path
) -> None:
    given = adapter(tmp_path / "adapter", template)
    if inside and template:  # as transformers 4 stores it
        (given / "chat_template.jinja").unlink()
        config = json.loads((given / "tokenizer_config.json").read_text())
        (given / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    convert.convert(MaterialiseConfig(), base, given, tmp_path / "made")
    expected = tiny.TEMPLATE if template is None else template
    found = AutoTokenizer.from_pretrained(tmp_path / "made" / MODEL).chat_template
    assert found == ({"default": expected, "rag": "{{ messages }}"} if template is None else expected)
    assert (tmp_path / "made" / MODEL / "config.json").read_bytes() == (base / "config.json").read_bytes()


def test_a_model_that_lacks_weights_is_refused(initial: Path) -> None:
    file = initial / MODEL / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(StageError, match=r"1 weights are not in the model's files, the first is .*up_proj\.weight"):
        load_model(initial, CPU)


@pytest.fixture
def shards(tmp_path: Path) -> Artifact:
    rows = [vars(pair) for pair in random_pairs(6)]
    return artifacts.of_rows(tmp_path, "shards", filenames.SHARD, [rows[:2], rows[2:]], SHARD)


def stored(name: str, initial: Path, shards: Artifact, folder: Path) -> Callable[[], float]:
    """A trained and stored policy, and its proof."""
    data = ShardData(shards)
    folder.mkdir()
    save_policy(moved(build_policy(CONFIGS[name], initial)), CONFIGS[name], initial, folder,
                lambda model: proof.write(model, data, folder))  # fmt: skip
    return lambda: proof.check(artifacts.of_folder(folder), artifacts.of_folder(initial), shards)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_stored_policy_is_the_trained_one(name: str, initial: Path, shards: Artifact, tmp_path: Path) -> None:
    assert stored(name, initial, shards, tmp_path / "trained")()["stored_difference"] < 1e-5
    noted = json.loads((tmp_path / "trained" / proof.PROOF).read_text())
    lengths = [len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in random_pairs(6)]
    assert noted["rows"] == sorted(range(6), key=lambda row: lengths[row])[:4]


def test_a_stored_policy_that_is_another_is_named_with_the_cause(
    initial: Path, shards: Artifact, tmp_path: Path
) -> None:
    folder = tmp_path / "trained"
    check = stored("lora", initial, shards, folder)
    file = folder / MODEL / "model.safetensors"
    good = load_file(file)

    def changed(weights: dict[str, Any]) -> str:
        save_file(weights, file, {"format": "pt"})
        with pytest.raises(StageError) as caught:
            check()
        assert "the stored policy is not the one that was trained" in str(caught.value)
        assert "nats per token" in str(caught.value)
        return str(caught.value)

    coarse = {name: (tensor * 8).round() / 8 for name, tensor in good.items()}
    assert "its weights were rounded to bfloat16" in changed({k: v.to(torch.bfloat16) for k, v in coarse.items()})
    assert "merging its adapter changed other weights too" in changed({k: v * 1.1 for k, v in good.items()})
    assert "differ by nan" in changed({k: v * float("nan") for k, v in good.items()})


def test_a_copied_model_is_whole(base: Path, tmp_path: Path) -> None:
    copy_model(base, tmp_path / "copy")
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()


def test_what_transformers_5_wrote_has_the_names_that_transformers_4_reads(tmp_path: Path) -> None:
    tiny.save(tmp_path)
    before = json.loads((tmp_path / "config.json").read_text())
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "TokenizersBackend"
    name_for_older_readers(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == {**before, "torch_dtype": before["dtype"], "rope_theta": before["rope_parameters"]["rope_theta"]}
    tokenizer = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"backend", "is_local", "local_files_only"} & tokenizer.keys()
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == tiny.TEMPLATE


@pytest.mark.parametrize("name", ["LlamaTokenizerFast", "Qwen2Tokenizer", "GPT2Tokenizer", "TokenizersBackend"])
def test_a_tokenizer_is_what_its_file_says_whatever_its_class_is_called(name: str, tmp_path: Path) -> None:
    """transformers builds another one from the vocabulary for some of these, which loses every space."""
    tiny.save(tmp_path / MODEL)
    config = json.loads((tmp_path / MODEL / "tokenizer_config.json").read_text())
    (tmp_path / MODEL / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": name}))
    talk: list[Message] = [{"role": "user", "content": "Hello there,\nyou  two"}]
    encoder = load_encoder(tmp_path)
    assert encoder.prompt(talk) == ChatEncoder(tiny.tokenizer()).prompt(talk)
    assert "Hello there,\nyou  two" in encoder.tokenizer.decode(encoder.prompt(talk))


def test_a_template_inside_the_bases_configuration_outlives_an_adapters(base: Path, tmp_path: Path) -> None:
    given = adapter(tmp_path / "adapter", tiny.TEMPLATE)
    (given / "chat_template.jinja").unlink()
    (base / "chat_template.jinja").unlink()
    (base / "additional_chat_templates" / "rag.jinja").unlink()
    config = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": "{{ messages[0].content }}"}))
    convert.convert(MaterialiseConfig(), base, given, tmp_path / "made")
    assert load_encoder(tmp_path / "made").template == "{{ messages[0].content }}"
