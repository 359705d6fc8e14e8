"""An adapter on a head that is tied to the embedding is refused, by the spec's check and where it is loaded."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig as PeftLora
from peft import get_peft_model

from pipelines.spec import load
from pipelines.spec.problems import SpecError
from stages.base import StageError
from stages.policy.adapters import attach, wrap
from tests import specs, tiny

HEADS = ["lm_head"], ["q_proj", "model.embed_tokens"], ["embed_tokens"]


def refused(folder: Path, model: Path, **sections: Any) -> str:
    with pytest.raises(SpecError) as caught:
        load.load(str(specs.offline(folder, model, **sections)))
    return str(caught.value)


@pytest.mark.parametrize("targets", [*HEADS, "lm_head", r".*\.embed_tokens"])
@pytest.mark.parametrize("declared", [True, False])
def test_check_refuses_it(targets: Any, declared: bool, tmp_path: Path) -> None:
    """Also where the configuration does not say it, and the weights have no head."""
    model = tiny.save(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    if not declared:
        del config["tie_word_embeddings"]
        (model / "config.json").write_text(json.dumps(config))
    message = refused(tmp_path, model, train={"peft": {"peft_type": "LORA", "r": 4, "target_modules": targets}})
    assert "train.peft.target_modules: " in message
    assert "shares its weights with the other end of the model" in message
    if isinstance(targets, list):
        message = refused(tmp_path, model, train={"lora": {"rank": 4, "target_modules": targets}})
        assert "train.lora.target_modules: " in message
    (model / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    assert load.load(str(specs.offline(tmp_path, model, train={"lora": {"rank": 4, "target_modules": ["lm_head"]}})))


def test_check_refuses_a_given_adapter_of_that_kind(tmp_path: Path) -> None:
    model, adapter = tiny.save(tmp_path / "model"), tmp_path / "adapter"
    settings = PeftLora(r=4, target_modules=["lm_head"], task_type="CAUSAL_LM")
    with warnings.catch_warnings(action="ignore"):
        get_peft_model(tiny.model(), settings).save_pretrained(adapter)
    message = refused(tmp_path, model, policy={"model": str(model), "adapter": str(adapter)})
    assert "policy.adapter: lm_head shares its weights" in message
    with pytest.raises(StageError, match="leave the head out"), pytest.warns(UserWarning, match="tied"):
        attach(tiny.model(), adapter)


@pytest.mark.parametrize("targets", HEADS)
def test_a_model_refuses_it_too(targets: list[str]) -> None:
    with (
        pytest.raises(StageError, match="shares its weights with the embedding"),
        pytest.warns(UserWarning, match="tied"),
    ):
        wrap(tiny.model(), {"peft_type": "LORA", "r": 4, "target_modules": targets})


def test_a_head_of_its_own_may_have_an_adapter() -> None:
    model = tiny.model()
    model.lm_head.weight = type(model.lm_head.weight)(model.lm_head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    assert wrap(model, {"peft_type": "LORA", "r": 4, "target_modules": ["lm_head"]})
