"""Scores of responses: what they are, for which models, and that they do not depend on the company."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.base import StageError
from stages.core.forward.layout import agrees, choose_layout, why_padded
from stages.core.forward.logprobs import ResponseLogprobs, decoder_of, freeze
from stages.core.forward.packing import Layout, collate
from stages.core.tokens.pair import EncodedPair
from stages.policy.adapters import wrap
from stages.train.config import TrainConfig
from stages.train.loop import train_steps
from stages.train.worker import Worker
from tests import zoo
from tests.memory import MemoryData, random_pairs, score

LAYOUTS: tuple[Layout, ...] = ("shared", "packed", "padded")
LORA = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj"]}


def lora(model: Any, **settings: Any) -> Any:
    torch.manual_seed(1)
    return wrap(model, {**LORA, **settings}).eval()


def prompt_learning(name: str) -> Any:
    torch.manual_seed(1)
    model = wrap(zoo.eager(), {"peft_type": name, "num_virtual_tokens": 5}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(2)
    return model


def plain(model: Any, pairs: list[EncodedPair]) -> Tensor:
    """The definition, token by token: the sum of log softmax(logits)[next token] over a response's tokens."""
    totals = torch.zeros(len(pairs), 2, dtype=torch.float64)
    for row, pair in enumerate(pairs):
        for side, ids in enumerate((pair.chosen_ids, pair.rejected_ids)):
            sequence = [*pair.prompt_ids, *ids]
            logits = model(input_ids=torch.tensor([sequence])).logits[0, -len(sequence) :]
            logprobs = logits.double().log_softmax(-1)
            for at in range(len(pair.prompt_ids), len(sequence)):
                totals[row, side] += logprobs[at - 1, sequence[at]]
    return totals


def some() -> list[EncodedPair]:
    """With one side missing."""
    pairs = random_pairs(6)
    pairs[1] = replace(pairs[1], rejected_ids=[])
    pairs[2] = replace(pairs[2], chosen_ids=[])
    return pairs


@torch.no_grad()
def together(model: Any, pairs: list[EncodedPair], layout: Layout, precision: str, pad_id: int = 0) -> Tensor:
    """Scores [pairs, 2] of all pairs in one forward pass."""
    scorer = ResponseLogprobs(model, layout, precision)
    values: Tensor = scorer(collate(pairs, layout, pad_id)).logprobs
    scorer.release()
    return values.view(-1, 2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [*zoo.LLAMA_LIKE, *zoo.OWN_LAYERS])
def test_log_probabilities_equal_the_plain_definition(name: str, layout: Layout) -> None:
    model, pairs = zoo.model(name), some()
    found = together(model, pairs, layout, "fp32")
    with torch.no_grad():
        expected = plain(model, pairs)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=1e-3, rtol=1e-5)
    assert (expected == 0).tolist() == [[False, False], [False, True], [True, False]] + [[False, False]] * 3


@pytest.mark.parametrize("name", [*zoo.LLAMA_LIKE, *zoo.OWN_LAYERS])
def test_packed_rows_are_the_best_layout_of_every_family_that_can_have_them(name: str) -> None:
    model = zoo.model(name)
    before = model(torch.tensor([[5, 6, 7]])).logits
    assert choose_layout(model, "auto") == "shared"
    assert agrees(model, "shared")
    assert torch.equal(model(torch.tensor([[5, 6, 7]])).logits, before)  # its own attention was given back


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("llama4", "its attention is cut into chunks"),
        ("inkling", "it has layers of the kind hybrid_sliding"),
        ("mamba", "it has layers of the kind linear_attention"),
        ("jamba", "it has layers of the kind linear_attention"),
    ],
)
def test_models_of_another_kind_are_padded_and_get_the_plain_definition(name: str, why: str) -> None:
    model, pairs = zoo.model(name), some()
    assert choose_layout(model, "auto") == "padded"
    with pytest.raises(StageError, match=f"^train.layout: shared is not for {type(model).__name__}: {why}; use auto"):
        choose_layout(model, "shared")
    assert agrees(model, "padded")
    with torch.no_grad():
        torch.testing.assert_close(
            together(model, pairs, "padded", "fp32").double(), plain(model, pairs), atol=1e-3, rtol=1e-5
        )


def test_without_weights_only_families_that_are_known_to_be_right_are_packed() -> None:
    known, other = zoo.model("gemma2"), zoo.of_family("laguna")
    assert [choose_layout(known, wanted, filled=False) for wanted in ("auto", "packed")] == ["shared", "packed"]
    assert choose_layout(other, "auto") == "shared"
    assert choose_layout(other, "auto", filled=False) == "padded"
    with pytest.raises(StageError, match="is not for LagunaForCausalLM: its family is not known to give the same"):
        choose_layout(other, "shared", filled=False)


@pytest.mark.parametrize("name", ["PREFIX_TUNING", "PROMPT_TUNING"])
def test_virtual_tokens_are_seen(name: str) -> None:
    model, pairs = prompt_learning(name), some()
    assert choose_layout(model, "auto") == "padded"
    assert agrees(model, "padded")
    with torch.no_grad():
        expected = plain(model, pairs)
    assert not torch.allclose(expected, plain(zoo.eager(), pairs), atol=0.1)
    torch.testing.assert_close(together(model, pairs, "padded", "fp32").double(), expected, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "granite", "cohere"])
def test_confidences_equal_the_plain_definition(name: str) -> None:
    """Means over a response's tokens of log p(token) - log sum_v p(v)^2, by the head and by autograd alike."""
    model, pairs = zoo.model(name), random_pairs(2)
    layout = choose_layout(model, "auto")
    scorer = ResponseLogprobs(model, layout, "fp32")
    with torch.no_grad():
        found = scorer(collate(pairs, layout), None, True).confidences.view(-1, 2)
        scorer.release()
        for pair, row in zip(pairs, found, strict=True):
            for ids, value in zip((pair.chosen_ids, pair.rejected_ids), row, strict=True):
                logits = model(input_ids=torch.tensor([[*pair.prompt_ids, *ids]])).logits[
                    0, len(pair.prompt_ids) - 1 : -1
                ]
                p = logits.double().softmax(-1)
                own = p[torch.arange(len(ids)), ids]
                expected = (own.log() - p.square().sum(-1).log()).mean()
                assert float(value) == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize(
    "name", ["llama", "llama, untied", "gpt2", "granite", "gemma2", "gpt_oss", "mamba", "PROMPT_TUNING", "lora"]
)
def test_the_gradient_is_that_of_the_plain_definition(name: str) -> None:
    """Of a weighted sum of the scores, by everything that is trained."""
    build = {"PROMPT_TUNING": prompt_learning, "lora": lambda _: lora(zoo.eager(), init_lora_weights=False)}
    model, pairs = build.get(name, zoo.model)(name), some()
    slopes = torch.arange(1.0, 13.0) / 10
    scorer = ResponseLogprobs(model, layout := choose_layout(model, "auto"), "fp32")
    scorer(collate(pairs, layout), lambda first, last, *_: slopes[2 * first : 2 * last]).handle.backward()
    scorer.release()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    (plain(model, pairs) * slopes.view(-1, 2)).sum().backward()
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained
    for n, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.grad is not None:
            assert (found[n] - parameter.grad).norm() < 1e-4 * parameter.grad.norm() + 1e-4, n


@pytest.mark.parametrize("pad_id", [0, 7])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_neighbours_and_padding_do_not_change_a_value(layout: Layout, pad_id: int) -> None:
    model, pairs = zoo.eager(), random_pairs(8, longest=30)
    found = together(model, pairs, layout, "fp32", pad_id)
    torch.testing.assert_close(found, score(model, pairs, layout, "fp32"), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", ["full", "lora", "dora", "ia3"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_bfloat16_a_value_is_the_same_bit_for_bit_whatever_its_neighbours(layout: Layout, name: str) -> None:
    """So that reference and policy agree exactly at step 0 however batches are cut."""
    model, pairs = zoo.eager(), random_pairs(8, longest=30)
    if name != "full":
        own = {"peft_type": "IA3"} if name == "ia3" else {**LORA, "use_dora": name == "dora"}
        model = wrap(model, own).eval()
    alone = score(model, pairs, layout, "bf16")
    for group in ([0, 1], [2, 3, 4], [5, 6, 7], list(range(8)), list(range(7, -1, -1))):
        assert torch.equal(together(model, [pairs[i] for i in group], layout, "bf16"), alone[group])
    exact = score(model, pairs, layout, "fp32")
    assert not torch.equal(alone, exact)
    torch.testing.assert_close(alone, exact, atol=0.5, rtol=0.02)


@pytest.mark.parametrize("name", [*zoo.LLAMA_LIKE, *zoo.OWN_LAYERS])
def test_in_bfloat16_packed_rows_are_near_the_definition(name: str) -> None:
    model, pairs = zoo.model(name), random_pairs(3, longest=12)
    found = together(model, pairs, "shared", "bf16")
    with torch.no_grad():
        torch.testing.assert_close(found.double(), plain(model, pairs), atol=2.0, rtol=0.05)


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_in_bfloat16_a_shared_prompt_gives_the_same_bits_as_one_a_response(adapter: bool) -> None:
    model, pairs = zoo.eager(), [*some(), *random_pairs(6, seed=2, longest=40)]
    model = lora(model, init_lora_weights=False) if adapter else model
    shared, packed = (together(model, pairs, layout, "bf16") for layout in ("shared", "packed"))
    assert torch.equal(shared, packed)


@pytest.mark.parametrize(
    ("adapter", "precision", "layout"), list(itertools.product([False, True], ["bf16", "fp32"], LAYOUTS))
)
def test_the_first_loss_is_ln_2(adapter: bool, precision: Any, layout: Layout) -> None:
    """The reference scores pairs one by one, the policy all at once; with an adapter its frozen layers are rounded
    beforehand. In bfloat16 the two agree to the bit."""
    data = MemoryData(some()).scored_by(freeze(zoo.eager().requires_grad_(False), precision), layout, precision)
    policy = freeze(lora(zoo.eager()) if adapter else zoo.eager(), precision)
    model = ResponseLogprobs(policy, layout, precision)
    config = TrainConfig(loss="kto", batch_size=6, precision=precision, learning_rate=1e-3)
    assert_start(model, data, config, layout, 10 / 12)  # two of twelve responses are missing, 1/2 each
    whole = MemoryData(data.items[3:], data.logprobs[:, 3:])
    config = TrainConfig(batch_size=3, precision=precision, learning_rate=1e-3)
    assert_start(model, whole, config, layout, math.log(2))


def assert_start(model: Any, data: MemoryData, config: TrainConfig, layout: Layout, loss: float) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    config = config.model_copy(update={"max_grad_norm": 1e-30})  # the weights stay as good as they are
    row = next(train_steps(model, optimizer, data, config, Worker(micro_batch_tokens=150), layout))
    exact = config.precision == "bf16"
    assert row["loss"] == pytest.approx(loss, abs=1e-6 if exact else 1e-4)
    assert row["kl"] == (0 if exact else pytest.approx(0, abs=1e-3))
    assert row["grad_norm"] > 0.01


def test_sums_are_float32_whatever_the_weights() -> None:
    model = zoo.eager().to(torch.bfloat16)
    assert all(together(model, random_pairs(2), layout, "bf16").dtype == torch.float32 for layout in LAYOUTS)


def test_adapters_take_part() -> None:
    pairs = random_pairs(3)
    adapted = lora(zoo.eager(), init_lora_weights=False)
    found = together(adapted, pairs, "shared", "fp32")
    with torch.no_grad():
        torch.testing.assert_close(found.double(), plain(adapted, pairs), atol=1e-3, rtol=1e-5)
    assert not torch.allclose(found, together(zoo.eager(), pairs, "shared", "fp32"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_wanted_layout_is_taken_and_auto_is_the_best_one(layout: Layout) -> None:
    assert choose_layout(zoo.eager(), layout) == layout
    assert choose_layout(zoo.eager(), "auto") == choose_layout(lora(zoo.eager()), "auto") == "shared"


def test_on_a_gpu_auto_is_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_layout(zoo.eager(), "auto") == "padded"
    assert choose_layout(zoo.eager(), "shared") == "shared"


def test_an_attention_of_its_own_is_found_out() -> None:
    """The parts are Llama's; what they are put together to is not."""
    model = zoo.eager()
    assert agrees(model, "shared")
    first = model.get_decoder().layers[0]
    own = first.forward
    first.forward = lambda hidden, *given, **named: own(hidden, *given, **named) + hidden.mean(1, keepdim=True)
    assert "more than the tokens that attention lets it see" in str(why_padded(model))


def test_frozen_layers_are_rounded_beforehand_and_nothing_else() -> None:
    untied = zoo.model("llama, untied").requires_grad_(False)
    freeze(untied, "bf16")
    assert untied.lm_head.weight.dtype == torch.bfloat16
    assert untied.get_input_embeddings().weight.dtype == torch.float32
    assert untied.model.norm.weight.dtype == torch.float32
    assert {p.dtype for n, p in untied.named_parameters() if "proj.weight" in n} == {torch.bfloat16}
    tied = freeze(lora(zoo.eager()), "bf16")
    assert tied.get_output_embeddings().weight.dtype == torch.float32
    assert {p.dtype for n, p in tied.named_parameters() if "lora" in n} == {torch.float32}
    assert {p.dtype for n, p in tied.named_parameters() if "base_layer" in n} == {torch.bfloat16}
    for model, precision in ((zoo.eager().requires_grad_(False), "fp32"), (zoo.eager(), "bf16")):
        assert {p.dtype for p in freeze(model, precision).parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_activations_that_are_worked_out_again_give_the_same_gradient(name: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = zoo.model(name).train()
        layout: Layout = "padded" if name == "gpt2" else "shared"
        for part in model.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
        scorer = ResponseLogprobs(model, layout, "fp32", checkpointing)
        scorer(
            collate(random_pairs(3), layout), lambda first, last, *_: torch.ones(2 * (last - first))
        ).handle.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients)
    assert gradients[0].norm() > 1


def test_the_decoder_is_found_through_any_wrapping() -> None:
    assert decoder_of(lora(zoo.eager())).layers
    assert decoder_of(prompt_learning("PROMPT_TUNING")).layers
    assert decoder_of(zoo.model("gpt2")).h
