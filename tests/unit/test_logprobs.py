from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GraniteConfig, GraniteForCausalLM

from stages.core.batching import Batch, collate
from stages.core.logprobs import ResponseLogprobs, sequence_logprobs
from tests import tiny
from tests.memory import encoded, random_pairs


def eager() -> Any:
    model = tiny.model()
    model.set_attn_implementation("eager")
    return model.eval()


def plain(model: Any, batch: Batch) -> Tensor:
    """The definition, token by token: the sum of log softmax(logits)[next token] over the marked tokens."""
    with torch.no_grad():
        logprobs = model(input_ids=batch.ids).logits.double().log_softmax(-1)
    rows, length = batch.ids.shape
    totals = torch.zeros(rows, dtype=torch.float64)
    for row in range(rows):
        for at in range(1, length):
            if batch.mask[row, at]:
                totals[row] += logprobs[row, at - 1, batch.ids[row, at]]
    return totals


@torch.no_grad()
def both(model: Any, batch: Batch, precision: str = "fp32") -> Tensor:
    return torch.cat(sequence_logprobs(ResponseLogprobs(model), batch, precision))


def test_log_probabilities_equal_the_plain_definition() -> None:
    model, batch = eager(), collate(random_pairs(6), pad_id=0)
    chosen, rejected = sequence_logprobs(ResponseLogprobs(model), batch, "fp32")
    assert chosen.shape == rejected.shape == (6,)
    assert chosen.dtype == torch.float32
    assert chosen.requires_grad
    torch.testing.assert_close(torch.cat([chosen, rejected]).double(), plain(model, batch), atol=1e-3, rtol=1e-5)


def test_models_that_scale_their_logits_get_the_plain_definition_too() -> None:
    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, logits_scaling=4.0, initializer_range=0.2,
    )  # fmt: skip
    model, batch = GraniteForCausalLM(config).eval(), collate(random_pairs(3), pad_id=0)
    torch.testing.assert_close(both(model, batch).double(), plain(model, batch), atol=1e-3, rtol=1e-5)


def test_tokens_that_are_not_marked_do_not_count() -> None:
    model, pair = eager(), random_pairs(1)[0]
    batch = collate([pair], pad_id=0)
    dropped = Batch(batch.ids, batch.mask.clone())
    dropped.mask[0, len(pair.prompt_ids)] = False
    difference = both(model, batch) - both(model, dropped)
    assert difference[0] < -0.01
    assert difference[1] == 0
    nothing = Batch(batch.ids, torch.zeros_like(batch.mask))
    assert both(model, nothing).tolist() == [0, 0]


def test_a_mark_on_the_first_token_never_counts() -> None:
    model, pair = eager(), encoded([5], [6, 7], [8])
    batch = collate([pair], pad_id=0)
    marked = Batch(batch.ids, batch.mask.clone())
    marked.mask[:, 0] = True
    assert torch.equal(both(model, batch), both(model, marked))


@pytest.mark.parametrize("pad_id", [0, 7])
def test_neighbours_and_padding_do_not_change_a_value(pad_id: int) -> None:
    model, pairs = eager(), random_pairs(8, longest=30)
    together = torch.stack(both(model, collate(pairs, pad_id)).chunk(2), 1)
    alone = torch.stack([both(model, collate([pair], pad_id=0)) for pair in pairs])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-5)


def test_in_bfloat16_a_value_is_the_same_bit_for_bit_whatever_its_neighbours() -> None:
    """With plain attention; so that reference and policy agree exactly at step 0 however batches are cut."""
    model, pairs = eager(), random_pairs(8, longest=30)
    alone = torch.stack([both(model, collate([pair], pad_id=0), "bf16") for pair in pairs])
    for group in ([0, 1], [2, 3, 4], [5, 6, 7], list(range(8)), list(range(7, -1, -1))):
        values = torch.stack(both(model, collate([pairs[i] for i in group], pad_id=0), "bf16").chunk(2), 1)
        assert torch.equal(values, alone[group])
    exact = torch.stack([both(model, collate([pair], pad_id=0)) for pair in pairs])
    assert not torch.equal(alone, exact)
    torch.testing.assert_close(alone, exact, atol=0.5, rtol=0.02)


def test_sums_are_float32_whatever_the_weights() -> None:
    model, batch = eager().to(torch.bfloat16), collate(random_pairs(2), pad_id=0)
    assert both(model, batch).dtype == torch.float32


def test_adapters_take_part() -> None:
    from peft import LoraConfig, get_peft_model

    batch = collate(random_pairs(3), pad_id=0)
    settings = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = get_peft_model(eager(), settings).eval()
    torch.testing.assert_close(both(adapted, batch).double(), plain(adapted, batch), atol=1e-3, rtol=1e-5)
    assert not torch.allclose(both(adapted, batch), both(eager(), batch))
