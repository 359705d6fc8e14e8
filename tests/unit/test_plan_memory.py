"""What a stage's worker takes, worked out by hand for a tiny model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.plan import capacity, memory
from pipelines.plan.shape import Shape, counted, of_config, of_folder
from stages.base import Resources, RolloutResources, TrainResources
from stages.generate.config import RolloutConfig
from stages.score.config import ReferenceConfig
from stages.train.config import RewardConfig, TrainConfig

TINY = {
    "model_type": "llama", "dtype": "bfloat16", "vocab_size": 32, "hidden_size": 8, "intermediate_size": 16,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
}  # fmt: skip
LLAMA = {"model_type": "llama", "dtype": "bfloat16", "vocab_size": 128256, "num_key_value_heads": 8}
LLAMA_8B = LLAMA | {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32
}  # fmt: skip
LLAMA_70B = LLAMA | {
    "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64
}  # fmt: skip
LORA = {"lora": {"rank": 2}}
GIB = 2**30


def shape(config: dict[str, Any]) -> Shape:
    found = of_config(config)
    assert isinstance(found, Shape), found
    return found


def need(resources: dict[str, Any], **config: Any) -> memory.Need:
    """Of a training of the tiny model with 16 tokens a micro-batch, of sequences of 8."""
    given = TrainResources.model_validate({"micro_batch_tokens": 16, **resources})
    return memory.training(shape(TINY), TrainConfig.model_validate(config), given, 8)


def test_parameters_are_counted_from_the_configuration() -> None:
    tiny = shape(TINY)
    # q and o 64 each, k and v 32 each, three of 128; norms 8 + 8
    assert (tiny.linear, tiny.layer, tiny.embedding, tiny.head, tiny.other) == (576, 592, 256, 256, 8)
    assert tiny.weights == 2 * 592 + 256 + 256 + 8
    assert shape(TINY | {"tie_word_embeddings": True}).head == 0
    assert shape(TINY | {"attention_bias": True, "mlp_bias": True}).layer == 592 + (8 + 4 + 4 + 8) + (16 + 16 + 8)
    assert shape(TINY | {"model_type": "qwen2"}).layer == 592 + (8 + 4 + 4)
    assert shape(TINY | {"model_type": "qwen3"}).layer == 592 + 2 * 4
    assert shape({"model_type": "gemma3", "text_config": TINY}).weights == tiny.weights
    assert shape(LLAMA_8B).weights == 8_030_261_248
    assert shape(LLAMA_70B).weights == 70_553_706_496


def test_parameters_are_counted_exactly_where_the_weights_are(tmp_path: Path) -> None:
    weights = {
        "model.embed_tokens.weight": {"dtype": "F32", "shape": [40, 8]},
        "model.layers.0.mlp.up_proj.weight": {"dtype": "F32", "shape": [16, 8]},
        "model.layers.1.mlp.up_proj.weight": {"dtype": "F32", "shape": [16, 8]},
        "model.norm.weight": {"dtype": "BF16", "shape": [8]},
        "lm_head.weight": {"dtype": "F32", "shape": [40, 8]},
    }
    header = json.dumps({"__metadata__": {}, **weights}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    found = of_folder(tmp_path)
    assert isinstance(found, Shape)
    assert (found.layer, found.embedding, found.head, found.other, found.stored) == (128, 320, 320, 8, 4)
    assert counted(shape(TINY), {"model.norm.weight": {"dtype": "F32", "shape": [8]}}) == shape(TINY)


def test_a_model_of_which_too_little_is_known_is_not_guessed(tmp_path: Path) -> None:
    assert of_folder(tmp_path) == "not known: the model's config.json is not on this machine"
    assert of_config({"hidden_size": 8}) == (
        "not known: the model's config.json does not say intermediate_size, num_hidden_layers, num_attention_heads, "
        "vocab_size"
    )
    assert of_config(TINY | {"num_local_experts": 8}) == "not known: the model is a mixture of experts"


def test_full_training_in_float32() -> None:
    found = need({}, precision="fp32")
    # A token in a layer: 8*8 + 4*(8+8+32) + 4*8*2 (norms) + 4*8 (o) + 4*16 (down) + 4*2*8 (attention) = 480.
    # Backward: 16 * (4*(48+16) + 64) + 8*128 = 6144, more than logits 16*32*4 + 256*8. Hidden: 16 * 12 * 8.
    expected = 2 * 16 * 480 + 6144 + 1536
    assert found.parts["activations"] == expected
    assert found.parts["trained weights"] == 16 * 1704
    assert found.parts["frozen weights"] == found.parts["gathered"] == found.parts["copies in bf16"] == 0
    assert found.total == expected + 16 * 1704 + memory.PROCESS["cpu"]
    assert found.when == ""


def test_checkpointing_keeps_what_goes_into_each_layer() -> None:
    found = need({"checkpointing": True})
    # One layer whole: 16 * 272; each layer's input: 16*8*(4+2); backward: 16*192 + 6*128; hidden: 16*8*8.
    assert found.parts["activations"] == 4352 + 2 * 768 + 3840 + 1024
    assert found.parts["copies in bf16"] == 2 * 576
    assert need({}).parts["copies in bf16"] == 2 * 2 * 576


@pytest.mark.parametrize(
    ("resources", "config", "each"),
    [
        ({}, {}, 16),
        ({}, {"optimizer": "adamw_8bit"}, 10),
        ({"workers": 2}, {}, 20),  # DistributedDataParallel's buckets
        ({"workers": 4, "strategy": "fsdp"}, {}, 4),
        ({"workers": [2, 4], "strategy": "fsdp"}, {}, 8),
        ({"workers": 1, "strategy": "fsdp"}, {}, 16),
    ],
)
def test_bytes_for_each_trained_weight(resources: dict[str, Any], config: dict[str, Any], each: int) -> None:
    assert need(resources, **config).parts["trained weights"] == each * 1704


def test_what_fsdp_gathers() -> None:
    sharded = {"workers": 4, "strategy": "fsdp"}
    full = need(sharded).parts
    # Embedding, head and norm with gradients in float32; of two layers products in bf16 and norms in float32, the
    # gradients of one alike, and once more in float32.
    assert full["gathered"] == 8 * 520 + 3 * (2 * 576 + 4 * 16) + 4 * 592
    assert full["copies in bf16"] == 0
    padded = need(sharded, layout="padded").parts
    assert (padded["gathered"], padded["copies in bf16"]) == (full["gathered"], 0)
    assert need(sharded, precision="fp32").parts["gathered"] == 8 * 520 + 4 * 4 * 592
    unknown = memory.training(
        shape({**TINY, "model_type": "new"}), TrainConfig(), TrainResources.model_validate(sharded), 8
    ).parts
    assert unknown["gathered"] == 8 * 520 + 4 * 4 * 592
    assert unknown["copies in bf16"] == 2 * 2 * 576
    adapted = need(sharded, **LORA).parts
    assert adapted["frozen weights"] == 2 * 1704 // 4
    assert adapted["gathered"] == 2 * 264 + 2 * (256 + 2 * 592)


def test_what_offloaded_shares_leave_on_a_card() -> None:
    sharded = {"workers": 3, "strategy": "fsdp", "gpus": 1}
    kept, found = need(sharded), need({**sharded, "offload": True})
    assert not kept.main
    assert found.parts["trained weights"] == found.parts["frozen weights"] == 0
    passing = 592 * (4 + 4) // 3  # a layer's share on its way to the card, and its gradients on theirs back
    assert found.total == kept.total - kept.parts["trained weights"] + passing
    # A third of q, k, v, o, three of the inner width; embedding and head: in float32, to the next power of two.
    pinned = 2 * (128 + 64 + 64 + 128 + 3 * 256) + 512 + 512
    assert found.main == {"trained weights": 2 * pinned + 8 * 1704 // 3, "process": memory.PROCESS["cpu"]}
    assert found.moments == {}
    adapted = need({**sharded, "offload": True}, **LORA)
    assert adapted.main["trained weights"] == 16 * 2 * 2 * ((8 + 8) + (8 + 4)) // 3
    assert adapted.main["frozen weights"] == 2 * (64 + 32 + 32 + 64 + 3 * 128) + 256 + 256
    assert adapted.parts["frozen weights"] == 0
    assert not need({"workers": 1, "strategy": "fsdp", "gpus": 1, "offload": True}).main


def test_a_frozen_base_under_an_adapter() -> None:
    found = need({}, **LORA)
    assert found.parts["trained weights"] == 16 * 2 * 2 * ((8 + 8) + (8 + 4))  # rank 2 on q_proj and v_proj
    assert found.parts["frozen weights"] == 2 * 1704  # products in bf16, all else as it is stored
    assert need({}, precision="fp32", **LORA).parts["frozen weights"] == 4 * 1704
    held = found.parts["trained weights"] + found.parts["frozen weights"] + memory.PROCESS["cpu"]
    assert found.moments == {"while reading": 0, "while saving": held + 4 * 1704}
    dora = need({}, lora={**LORA["lora"], "dora": True})  # begins with the lengths of whole weights
    assert dora.parts["frozen weights"] == 2 * (2 * 576 + 256) + 4 * 296
    assert dora.moments["while reading"] == 4 * 1704 + memory.PROCESS["cpu"]
    quantised = need({}, quantization="4bit", **LORA).parts["frozen weights"]
    assert quantised == int(2 * 576 * 0.516) + 2 * 256 + 4 * 296
    everywhere = memory.adapter_of(TrainConfig.model_validate({"lora": {"rank": 1, "target_modules": ["mlp.up_proj"]}}),
                                   shape(TINY))  # fmt: skip
    assert everywhere == memory.Adapter(2 * 24, ("up_proj",))
    assert memory.adapter_of(TrainConfig.model_validate({"peft": {"peft_type": "IA3"}}), shape(TINY)) is not None


def test_a_reward_model_has_no_head() -> None:
    found = memory.training(shape(TINY), RewardConfig(), TrainResources(micro_batch_tokens=16), 8)
    assert found.parts["trained weights"] == 16 * (1704 - 256)
    assert found.parts["activations"] == need({}).parts["activations"] - 1024


def test_other_stages_hold_frozen_weights() -> None:
    scored = memory.reference(shape(TINY), ReferenceConfig(), Resources(), 8)
    assert scored.parts["weights"] == 2 * 1704
    assert not scored.moments
    for engine, shared, size in (("vllm", 1, 2), ("vllm", 2, 1), ("transformers", 1, 4)):
        config = RolloutConfig.model_validate({"engine": engine})
        taken = memory.rollout(shape(TINY), config, RolloutResources.model_validate({"tensor_parallel": shared}))
        assert taken.parts["weights"] == size * 1704


def test_a_card_scores_more_tokens_at_a_time() -> None:
    config = ReferenceConfig(layout="padded")
    cpu, card = (memory.reference(shape(LLAMA_8B), config, Resources(gpus=gpus), 8) for gpus in (0, 1))
    assert card.parts["activations"] > 7 * cpu.parts["activations"]


def said(
    config: dict[str, Any], resources: dict[str, Any], model: dict[str, Any] = LLAMA_8B, machine: int | None = None
) -> str | None:
    given, training = TrainResources.model_validate(resources), TrainConfig.model_validate(config)
    found = memory.training(shape(model), training, given, 1024)

    def changes(most: int) -> str:
        return capacity.for_training(shape(model), training, given, 1024, machine, most)

    return capacity.misfit("round-1/train", "train", found, capacity.room(given, 64 * GIB), changes)


def test_what_does_not_fit_is_said_with_what_to_change() -> None:
    one = {"gpus": 1, "accelerator_type": "H100"}
    note = said({}, one)
    assert note is not None
    assert note.startswith("round-1/train would not fit: a worker takes about 1")
    assert (
        "of the 80.0 GiB of one H100; it would with train.lora: {rank: 16} or resources.train: {strategy: fsdp" in note
    )
    assert said({}, {**one, "strategy": "fsdp", "workers": 8}) is None
    assert said({"lora": {"rank": 16}}, {"gpus": 1, "accelerator_type": "A100", "checkpointing": True}) == (
        "round-1/train fits one A100 of 80 GiB, not one of 40 GiB"
    )
    two = {**one, "strategy": "fsdp", "workers": 2}
    assert "or resources.train.offload: true" in (said({}, two) or "")
    for less in (said({}, two, machine=64 * GIB), said({}, {**two, "memory_gib": 40})):
        assert less is not None
        assert "offload" not in less
    assert said({}, {**one, "strategy": "fsdp", "workers": 2, "offload": True}) is None
    assert "while saving" in (said({"lora": {"rank": 16}}, one, LLAMA_70B) or "")
    here = said({}, {})
    assert here is not None
    assert "64.0 GiB of this machine; it would with train.lora" in here
    assert "fsdp" not in here


def test_nothing_is_said_where_the_room_is_not_known() -> None:
    assert said({}, {"gpus": 1}) is None
    assert said({}, {"gpus": 1, "accelerator_type": "M1"}) is None
    assert said({}, {"label_selector": {"zone": "a"}}) is None
    assert "12.0 GiB of memory_gib" in (said({}, {"memory_gib": 12}) or "")
    assert capacity.room(Resources(gpus=0.5, accelerator_type="L4"), None) == capacity.Room(
        "0.5 of one L4", 12 * GIB, 12 * GIB, gpu=True
    )


def test_an_engine_is_spread_over_gpus() -> None:
    resources = RolloutResources(gpus=1, accelerator_type="H100")
    found = memory.rollout(shape(LLAMA_70B), RolloutConfig(engine="vllm"), resources)
    note = capacity.misfit(
        "round-1/rollout", "rollout", found, capacity.room(resources, None),
        lambda most: capacity.for_rollout(found.parts["weights"], most),
    )  # fmt: skip
    assert note is not None
    assert note.endswith("it would with resources.rollout.tensor_parallel: 4")


EXAMPLES: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "8B, full, 8 workers": (LLAMA_8B, {}, 8),
    "70B, LoRA, 16 workers": (LLAMA_70B, {"lora": {"rank": 16}}, 16),
}


def test_the_arithmetic_in_the_docs_is_what_is_estimated() -> None:
    text = (Path(__file__).parents[2] / "docs/memory.md").read_text(encoding="utf-8")
    for name, (model, config, workers) in EXAMPLES.items():
        for checkpointing in (False, True):
            resources = TrainResources(workers=workers, strategy="fsdp", gpus=1, checkpointing=checkpointing)
            training = TrainConfig.model_validate(config)
            found = memory.training(shape(model), training, resources, 1024)
            packed = memory.training(shape(model), training.model_copy(update={"layout": "packed"}), resources, 1024)
            values = [*found.parts.values(), found.total, packed.total]
            cells = " | ".join(f"{value / GIB:.1f}" for value in values)
            row = f"| {name}{', checkpointing' if checkpointing else ''} | {cells} |"
            assert row in text, row
    two = [
        memory.training(
            shape(LLAMA_8B), TrainConfig(),
            TrainResources(workers=2, strategy="fsdp", gpus=1, checkpointing=True, offload=offload), 1024,
        )
        for offload in (True, False)
    ]  # fmt: skip
    numbers = two[0].total, two[1].total, sum(two[0].main.values())
    card, without, main = (f"{value / GIB:.1f}" for value in numbers)
    assert f"`offload` and `checkpointing` takes {card} GiB of each (without `offload` {without})" in text
    assert f"and {main} of\nmain memory" in text
    scored = memory.reference(shape(LLAMA_70B), ReferenceConfig(), Resources(), 1024)
    assert f"takes {(scored.total - memory.PROCESS['cpu']) / GIB:.0f} GiB" in text


def test_a_trained_policy_is_stored_in_float32() -> None:
    resources = TrainResources(workers=4, strategy="fsdp", micro_batch_tokens=16)
    config = TrainConfig.model_validate(LORA)
    found = memory.training(replace(shape(TINY), stored=4), config, resources, 8)
    assert found.parts["frozen weights"] == (2 * (2 * 576 + 256) + 4 * 296) // 4


def test_auto_is_estimated_as_the_fewest_tokens_that_it_tries() -> None:
    assert need({"micro_batch_tokens": "auto", "gpus": 1}) == need({"micro_batch_tokens": 2048, "gpus": 1})
