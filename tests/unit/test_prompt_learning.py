"""Hidden states with virtual tokens before them, and answers of such policies."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stages.base import StageError
from stages.core.forward.virtual_tokens import hidden_states, is_prompt_learning
from stages.generate import engines
from stages.generate.config import RolloutConfig
from stages.generate.serving import Weights
from stages.generate.transformers_engine import TransformersEngine
from stages.io.filenames import MODEL
from stages.train import policy as policies
from stages.train.config import TrainConfig
from tests import tiny
from tests.memory import random_pairs

TYPES = ("PREFIX_TUNING", "PROMPT_TUNING")
PROMPTS = [random_pairs(1, seed=s)[0].prompt_ids for s in range(4)]


def config(name: str) -> TrainConfig:
    return TrainConfig(peft={"peft_type": name, "num_virtual_tokens": 5})


@pytest.fixture
def initial(tmp_path: Path) -> Path:
    folder = tmp_path / "initial"
    tiny.save(folder / MODEL)
    return folder


def policy(name: str, initial: Path) -> Any:
    torch.manual_seed(0)
    made = policies.build_policy(config(name), initial).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.mul_(2)
    return made


def padded() -> tuple[torch.Tensor, torch.Tensor]:
    length = max(map(len, PROMPTS))
    ids = torch.tensor([p + [0] * (length - len(p)) for p in PROMPTS])
    mask = torch.tensor([[True] * len(p) + [False] * (length - len(p)) for p in PROMPTS])
    assert not mask.all()
    return ids, mask


@pytest.mark.parametrize("name", TYPES)
def test_the_head_makes_of_them_what_the_model_makes_itself(name: str, initial: Path) -> None:
    """Each sequence alone through peft's own forward pass, against all of them padded."""
    model = policy(name, initial)
    ids, mask = padded()
    with torch.no_grad():
        hidden = hidden_states(model, ids, mask)
        assert hidden.shape == (*ids.shape, 32)
        made = model.get_output_embeddings()(hidden)
        for row, prompt in enumerate(PROMPTS):
            alone = model(torch.tensor([prompt])).logits[0, -len(prompt) :]
            torch.testing.assert_close(made[row, : len(prompt)], alone, atol=1e-4, rtol=1e-4)
            without = tiny.model().eval()(torch.tensor([prompt])).logits[0]
            assert not torch.allclose(alone, without, atol=0.05)


@pytest.mark.parametrize("name", TYPES)
def test_gradients_reach_the_virtual_tokens_and_nothing_else(name: str, initial: Path) -> None:
    model = policy(name, initial)
    ids, mask = padded()
    hidden_states(model, ids, mask)[mask].square().mean().backward()
    with_gradient = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert with_gradient
    assert all(n.startswith("prompt_encoder") for n in with_gradient)
    assert not model.get_base_model().get_decoder()._forward_hooks


def test_only_virtual_tokens_are_prompt_learning(initial: Path) -> None:
    assert all(is_prompt_learning(policies.build_policy(config(name), initial)) for name in TYPES)
    assert not is_prompt_learning(policies.build_policy(TrainConfig(), initial))
    assert not is_prompt_learning(policies.build_policy(TrainConfig(peft={"peft_type": "IA3"}), initial))


@pytest.mark.parametrize("name", TYPES)
def test_greedy_answers_are_the_likeliest_tokens_after_the_virtual_ones(
    name: str, initial: Path, tmp_path: Path
) -> None:
    model = policy(name, initial)
    policies.save_policy(model, config(name), initial, tmp_path / "made")
    settings = RolloutConfig(engine="transformers", samples=2, temperature=0, max_tokens=8)
    engine = TransformersEngine(settings, Weights(tmp_path / "made"), cpus=1)
    answers = engine.generate(PROMPTS)
    for prompt, samples in zip(PROMPTS, answers, strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + 8 and (len(ids) == len(prompt) or ids[-1] not in engine.ends):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert [sample.token_ids for sample in samples] == [ids[len(prompt) :]] * 2
    plain = TransformersEngine(settings, Weights(initial), cpus=1).generate(PROMPTS)
    assert plain != answers


def test_penalties_of_the_base_are_off(initial: Path, tmp_path: Path) -> None:
    """peft asks the wrong module for its generation settings."""
    base = tiny.model()
    base.generation_config.repetition_penalty = 10.0
    base.save_pretrained(initial / MODEL)
    policies.save_policy(policy(TYPES[1], initial), config(TYPES[1]), initial, tmp_path / "made")
    engine = TransformersEngine(RolloutConfig(engine="transformers"), Weights(tmp_path / "made"), cpus=1)
    assert engine.model.get_base_model().generation_config.repetition_penalty in (None, 1.0)


def test_vllm_refuses_to_serve_them(initial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policies.save_policy(policy(TYPES[0], initial), config(TYPES[0]), initial, tmp_path / "made")
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=None, SamplingParams=None))
    monkeypatch.setitem(sys.modules, "vllm.lora", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "vllm.lora.request", SimpleNamespace(LoRARequest=None))
    with pytest.raises(StageError, match=r"rollout\.engine"):
        engines.make(RolloutConfig(engine="vllm"), Weights(tmp_path / "made"), 1)
