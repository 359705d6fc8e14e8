"""An adapter trained before becomes part of the base, for good."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftLora
from peft import PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from stages.base import StageError
from stages.catalog import MATERIALISE
from stages.core.forward.logprobs import ResponseLogprobs
from stages.io.artifact import UserFile
from stages.policy.config import MaterialiseConfig
from stages.policy.load import load_model, load_policy
from stages.policy.save import weights_dtype
from stages.train import policy as policies
from stages.train.config import LoraConfig, TrainConfig
from stages.train.loop import train_steps
from stages.train.worker import Worker
from tests import artifacts, tiny
from tests.memory import MemoryData, random_pairs, score

CPU = torch.device("cpu")
IDS = torch.tensor([random_pairs(1)[0].prompt_ids])


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    result: torch.Tensor = model.eval()(IDS).logits
    return result


def sft(folder: Path, model: Any | None = None) -> Path:
    """An adapter as an earlier training leaves it."""
    torch.manual_seed(1)
    config = PeftLora(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = get_peft_model(model or tiny.model(), config)
    adapted.save_pretrained(folder)
    return folder


def materialised(folder: Path, source: Path, adapter: Path) -> Path:
    inputs = {"source": UserFile(str(source), "x"), "adapter": UserFile(str(adapter), "y")}
    return artifacts.run(MATERIALISE, folder, MaterialiseConfig(), inputs).folder()


def test_the_policy_is_the_base_with_the_adapter(tmp_path: Path) -> None:
    adapter = sft(tmp_path / "sft")
    expected = logits(PeftModel.from_pretrained(tiny.model(), adapter))
    assert not torch.allclose(expected, logits(tiny.model()), atol=0.1)
    source = tiny.save(tmp_path / "source")
    policy = materialised(tmp_path, source, adapter)
    torch.testing.assert_close(logits(load_policy(policy, CPU)), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(LlamaForCausalLM.from_pretrained(source)), logits(tiny.model()))
    assert not (policy / "adapter").exists()


def test_the_bases_precision_and_shards_stay_in_order(tmp_path: Path) -> None:
    source = tmp_path / "source"
    tiny.tokenizer().save_pretrained(source)
    tiny.model().to(torch.bfloat16).save_pretrained(source, max_shard_size="20KB")
    assert len(list(source.glob("*.safetensors"))) > 1
    policy = materialised(tmp_path, source, sft(tmp_path / "sft"))
    assert weights_dtype(policy / "model") == "float32"  # nothing of the adapter is rounded away
    assert (policy / "model" / "config.json").read_bytes() == (source / "config.json").read_bytes()
    assert [file.name for file in (policy / "model").glob("*.safetensors*")] == ["model.safetensors"]
    expected = logits(PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(source).float(), tmp_path / "sft"))
    torch.testing.assert_close(logits(load_model(policy, CPU)), expected, atol=1e-4, rtol=1e-4)


def test_dpo_with_a_new_adapter_is_held_against_the_merged_policy(tmp_path: Path) -> None:
    """At step 0 policy and reference are one, and it is not the base: the first loss is ln 2."""
    policy = materialised(tmp_path, tiny.save(tmp_path / "source"), sft(tmp_path / "sft"))
    pairs = random_pairs(4)
    data = MemoryData(pairs).scored_by(load_policy(policy, CPU))
    layout = "shared"
    trained = policies.build_policy(TrainConfig(lora=LoraConfig(), precision="fp32"), policy)
    model = policies.without_dropout(ResponseLogprobs(trained, layout, "fp32"))
    config = TrainConfig(precision="fp32", batch_size=4)
    row = next(train_steps(model, torch.optim.SGD(model.parameters()), data, config, Worker(), layout))
    assert row["loss"] == pytest.approx(math.log(2), abs=1e-5)
    before = score(tiny.model(), pairs, layout, "fp32")
    assert not torch.allclose(data.reference(range(4))[0], before[:, 0], atol=0.1)


@pytest.mark.parametrize(("hidden", "layers"), [(48, 2), (32, 3), (32, 1)], ids=["wider", "deeper", "shallower"])
def test_an_adapter_of_another_base_is_refused(hidden: int, layers: int, tmp_path: Path) -> None:
    config = LlamaConfig.from_dict(
        {**tiny.model().config.to_dict(), "hidden_size": hidden, "num_hidden_layers": layers, "head_dim": 8}
    )
    adapter = sft(tmp_path / "sft", LlamaForCausalLM(config))
    with pytest.raises(StageError, match="does not fit the model"):
        materialised(tmp_path, tiny.save(tmp_path / "source"), adapter)


def test_weights_that_would_be_unpickled_are_not_read(tmp_path: Path) -> None:
    adapter = sft(tmp_path / "sft")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(StageError, match=r"no adapter_model\.safetensors"):
        materialised(tmp_path, tiny.save(tmp_path / "source"), adapter)


def test_a_model_folder_with_an_adapter_in_it_is_refused(tmp_path: Path) -> None:
    """transformers would load the base that the adapter names, wherever that is."""
    source = tiny.save(tmp_path / "source")
    (source / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "x/y"}))
    with pytest.raises(StageError, match=r"policy\.adapter"):
        materialised(tmp_path, source, sft(tmp_path / "sft"))
