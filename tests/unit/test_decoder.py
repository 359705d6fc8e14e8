"""The decoder over packed rows against the models' own forward passes, one sequence at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.core.forward import decoder
from stages.core.forward.decoder import PackedDecoder, is_llama_like
from stages.core.forward.logprobs import decoder_of, packed_decoder
from stages.core.forward.packing import Layout, collate
from stages.core.tokens.pair import EncodedPair
from stages.policy.adapters import wrap
from tests import zoo
from tests.memory import random_pairs

PACKED: tuple[Layout, ...] = ("shared", "packed")
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"peft_type": "LORA", "r": 4, "target_modules": "all-linear"},
    "lora on some": {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "down_proj"]},
    "lora with dropout": {"peft_type": "LORA", "r": 4, "lora_dropout": 0.5, "target_modules": "all-linear"},
    "dora": {"peft_type": "LORA", "r": 4, "use_dora": True, "target_modules": "all-linear"},
    "rslora": {"peft_type": "LORA", "r": 4, "use_rslora": True, "target_modules": "all-linear"},
    "ia3": {"peft_type": "IA3"},
    "loha": {"peft_type": "LOHA", "r": 4},
    "oft": {"peft_type": "OFT", "oft_block_size": 8},
}


def pairs() -> list[EncodedPair]:
    made = random_pairs(4, seed=1)
    return [made[0], replace(made[1], rejected_ids=[]), *made[2:]]


def adapted(name: str, base: str = "llama") -> Any:
    """A model with an adapter that does something."""
    made = wrap(zoo.model(base), ADAPTERS[name]).eval()
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def packed(model: Any, layout: Layout, dtype: torch.dtype = torch.float32, checkpointing: bool = False) -> Tensor:
    """Hidden states of all tokens before response tokens."""
    batch = collate(pairs(), layout)
    assert batch.segments is not None
    own = packed_decoder(decoder_of(model), checkpointing)
    hidden: Tensor = own(batch.ids, batch.positions, batch.segments, batch.rows, dtype)
    own.release()
    return hidden


def plain(model: Any) -> Tensor:
    """The same in the same order by the model's own forward pass, every sequence alone."""
    rows = []
    for pair in pairs():
        for ids in (pair.chosen_ids, pair.rejected_ids):
            sequence = torch.tensor([[*pair.prompt_ids, *ids]])
            hidden = decoder_of(model)(input_ids=sequence, use_cache=False).last_hidden_state[0]
            rows.append(hidden[len(pair.prompt_ids) - 1 : -1])
    return torch.cat(rows)


def gradients(model: Any, hidden: Tensor) -> dict[str, Tensor]:
    """Of one number made of the hidden states, by everything that is trained (the head aside)."""
    model.zero_grad()
    generator = torch.Generator().manual_seed(3)
    (hidden * torch.randn(hidden.shape, generator=generator)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        # Some have no influence at all: the bias of keys moves all scores of a row alike
        assert (found[name] - tensor).norm() < 1e-4 * tensor.norm() + 1e-4, name


@pytest.mark.parametrize("layout", PACKED)
@pytest.mark.parametrize("name", [*zoo.LLAMA_LIKE, *zoo.OWN_LAYERS])
def test_hidden_states_are_the_models_own(name: str, layout: Layout) -> None:
    model = zoo.model(name)
    expected = plain(model)
    assert is_llama_like(decoder_of(model)) == (name in zoo.LLAMA_LIKE)
    torch.testing.assert_close(packed(model, layout), expected, atol=1e-4, rtol=1e-4)
    assert len(expected) == sum(len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs())


@pytest.mark.parametrize("layout", PACKED)
@pytest.mark.parametrize("name", [*zoo.LLAMA_LIKE, "gemma2", "phi3", "mixtral", "gpt_oss", "deepseek_v3"])
def test_gradients_of_all_weights_are_the_models_own(name: str, layout: Layout) -> None:
    model = zoo.model(name)
    expected = gradients(model, plain(model))
    assert_same_gradients(gradients(model, packed(model, layout)), expected)
    assert expected.keys() == {n for n, _ in model.named_parameters() if "lm_head" not in n}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_are_gone_through_as_peft_goes_through_them(name: str) -> None:
    model = adapted(name)
    expected = plain(model)
    assert not torch.allclose(expected, plain(zoo.model("llama")), atol=0.1)
    torch.testing.assert_close(packed(model, "shared"), expected, atol=2e-4, rtol=2e-4)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    by_peft = gradients(model, plain(model))
    assert by_peft.keys() == trained
    assert_same_gradients(gradients(model, packed(model, "shared")), by_peft)


@pytest.mark.parametrize("name", ["lora", "dora", "ia3"])
def test_adapters_on_layers_with_biases(name: str) -> None:
    model = adapted(name, "qwen2")
    torch.testing.assert_close(packed(model, "shared"), plain(model), atol=2e-4, rtol=2e-4)
    assert_same_gradients(gradients(model, packed(model, "shared")), gradients(model, plain(model)))


@pytest.mark.parametrize("state", ["disabled", "merged"])
def test_an_adapter_that_is_off_or_merged_does_not_count_twice(state: str) -> None:
    model = adapted("lora")
    if state == "merged":
        expected = plain(model)
        model.merge_adapter()
        torch.testing.assert_close(packed(model, "shared"), expected, atol=2e-4, rtol=2e-4)
        return
    with model.disable_adapter():
        found = packed(model, "shared")
    torch.testing.assert_close(found, plain(zoo.model("llama")), atol=1e-4, rtol=1e-4)


def test_several_adapters_at_once() -> None:
    from peft import LoraConfig

    model = adapted("lora")
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.base_model.set_adapter(["default", "other"])
    torch.testing.assert_close(packed(model, "shared"), plain(model), atol=2e-4, rtol=2e-4)


def test_dropout_of_an_adapter_is_drawn_anew_and_follows_the_seed() -> None:
    model = adapted("lora with dropout").train()

    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return packed(model, "shared")

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


@pytest.mark.parametrize("name", ["lora", "lora with dropout"])
def test_working_activations_out_again_changes_nothing(name: str) -> None:
    model = adapted(name).train()

    def run(checkpointing: bool) -> tuple[Tensor, dict[str, Tensor]]:
        torch.manual_seed(0)
        hidden = packed_kept(model, checkpointing)
        return hidden.detach(), gradients(model, hidden)

    (kept, by_kept), (again, by_again) = run(False), run(True)
    assert torch.equal(kept, again)
    assert all(torch.equal(by_kept[n], by_again[n]) for n in by_kept)


def packed_kept(model: Any, checkpointing: bool) -> Tensor:
    """As ``packed``, without giving the layers back: they are needed once more in the backward pass."""
    batch = collate(pairs(), "shared")
    assert batch.segments is not None
    own = PackedDecoder(decoder_of(model), checkpointing)
    hidden: Tensor = own(batch.ids, batch.positions, batch.segments, batch.rows, torch.float32)
    return hidden


@pytest.mark.parametrize("name", ["lora", "dora", "ia3"])
def test_in_bfloat16_all_is_near_to_float32(name: str) -> None:
    model = adapted(name)
    exact, found = packed(model, "shared"), packed(model, "shared", torch.bfloat16)
    assert found.dtype == torch.bfloat16
    assert (found.float() - exact).norm() < 0.05 * exact.norm()
    by_exact = gradients(model, exact)
    by_found = gradients(model, found)
    assert by_exact.keys() == by_found.keys()
    for n, tensor in by_exact.items():
        assert by_found[n].dtype == torch.float32
        assert (by_found[n] - tensor).norm() < 0.15 * tensor.norm(), n


@pytest.mark.parametrize(("name", "fused"), [("lora", 14), ("lora with dropout", 0), ("dora", 0), ("lora on some", 4)])
def test_only_plain_low_rank_updates_take_the_short_way(name: str, fused: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers of seven products."""
    calls = []
    own = decoder.low_rank
    monkeypatch.setattr(decoder, "low_rank", lambda *given: calls.append(1) or own(*given))
    packed(adapted(name), "shared")
    assert len(calls) == fused


def test_the_models_own_forward_pass_is_given_back() -> None:
    model = zoo.model("llama")
    before = plain(model)
    batch = collate(pairs(), "shared")
    own = PackedDecoder(decoder_of(model))
    with pytest.raises((TypeError, AttributeError)):
        model(batch.ids[None])
    own.release()
    assert torch.equal(plain(model), before)


@pytest.mark.parametrize("name", [name for name in zoo.OTHERS if name != "granite"])
def test_models_that_are_built_otherwise_are_told_apart(name: str) -> None:
    """(Granite has Llama's parts and other numbers; ``agrees`` finds it out.)"""
    assert not is_llama_like(decoder_of(zoo.model(name)))


@pytest.mark.parametrize("place", ["", "layers.1", "layers.1.self_attn", "layers.1.mlp"])
def test_a_part_too_many_or_one_missing_anywhere_is_noticed(place: str) -> None:
    inside = decoder_of(zoo.model("llama"))
    inside.get_submodule(place).add_module("extra", torch.nn.Identity())
    assert not is_llama_like(inside)
    del inside.get_submodule(place).extra
    assert is_llama_like(inside)
    inside.get_submodule(place)._modules.popitem()
    assert not is_llama_like(inside)


def test_gradients_of_a_weight_that_two_micro_batches_use_add_up() -> None:
    model = zoo.model("llama")
    once = gradients(model, packed(model, "shared"))
    model.zero_grad()
    for _ in range(2):
        hidden = packed(model, "shared")
        generator = torch.Generator().manual_seed(3)
        (hidden * torch.randn(hidden.shape, generator=generator)).sum().backward()
    for name, parameter in model.named_parameters():
        if name in once:
            torch.testing.assert_close(parameter.grad, 2 * once[name])
