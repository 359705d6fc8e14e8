from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, OPTConfig, OPTForCausalLM

from stages.base import TrainResources
from stages.core.forward.logprobs import ResponseLogprobs, freeze
from stages.core.forward.packing import collate
from stages.core.losses.objective import UserFunctionError
from stages.core.metrics import BY_TASK
from stages.io.filenames import ADAPTER, MODEL
from stages.policy.load import load_model, load_tokenizer
from stages.train import distributed, session, train
from stages.train.config import LoraConfig, TrainConfig
from stages.train.gradients import MicroBatchError
from stages.train.loop import NotFiniteError
from stages.train.policy import build_policy, save_policy, without_dropout
from tests import tiny
from tests.memory import random_pairs

CPU = torch.device("cpu")
IDS = torch.tensor([random_pairs(1)[0].prompt_ids])


@pytest.fixture
def initial(tmp_path: Path) -> Path:
    folder = tmp_path / "initial"
    tiny.save(folder / MODEL)
    return folder


def lora(**settings: Any) -> TrainConfig:
    return TrainConfig(lora=LoraConfig(**{"rank": 4, **settings}), precision="fp32")


def adapted_modules(policy: Any) -> set[str]:
    return {name.split(".lora_")[0].rsplit(".", 1)[1] for name, _ in policy.named_parameters() if ".lora_" in name}


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    result: torch.Tensor = model.eval()(IDS).logits
    return result


def moved(policy: Any) -> Any:
    """The policy after some training: its trainable weights are no longer what they were."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return policy


def test_full_training_trains_every_weight_in_float32(initial: Path) -> None:
    policy = build_policy(TrainConfig(), initial)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in policy.parameters())
    torch.testing.assert_close(logits(policy), logits(tiny.model()))


def test_an_adapter_changes_nothing_at_first_and_alone_is_trained(initial: Path) -> None:
    policy = build_policy(lora(), initial)
    torch.testing.assert_close(logits(policy), logits(tiny.model()))
    trained = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert trained
    assert all(".lora_" in name for name in trained)
    assert adapted_modules(policy) == {"q_proj", "v_proj"}


def test_an_adapter_sits_where_it_is_told_to(initial: Path) -> None:
    policy = build_policy(lora(target_modules=("gate_proj", "o_proj")), initial)
    assert adapted_modules(policy) == {"gate_proj", "o_proj"}


@pytest.mark.parametrize(("alpha", "expected"), [(None, 8.0), (2.0, 2.0)])
def test_alpha_is_twice_the_rank_unless_it_is_set(initial: Path, alpha: float | None, expected: float) -> None:
    settings = build_policy(lora(alpha=alpha, dropout=0.25), initial).peft_config["default"]
    assert (settings.r, settings.lora_alpha, settings.lora_dropout) == (4, expected, 0.25)


def test_the_models_own_dropout_stays_off_in_training(tmp_path: Path) -> None:
    """Else policy and reference differ before the first step, and its loss is not ln 2."""
    model = tiny.model()
    model.config.attention_dropout = 0.5
    model.save_pretrained(tmp_path / MODEL)
    policy = ResponseLogprobs(build_policy(TrainConfig(), tmp_path), "padded", "fp32").train()
    batch = collate(random_pairs(2), "padded")
    assert not torch.equal(policy(batch).logprobs, policy(batch).logprobs)
    without_dropout(policy)
    assert torch.equal(policy(batch).logprobs, policy(batch).logprobs)


def test_checkpointing_recomputes_activations_and_brings_no_dropout_back() -> None:
    """OPT's layers drop out by themselves, in training mode alone, in which alone transformers recomputes."""
    sizes = {"vocab_size": 259, "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 2}
    model = OPTForCausalLM(OPTConfig(**sizes, num_attention_heads=4, max_position_embeddings=256, dropout=0.5))
    policy = without_dropout(ResponseLogprobs(model, "padded", "fp32", checkpointing=True))
    passes: list[int] = []
    model.model.decoder.layers[0].fc1.register_forward_hook(lambda *_: passes.append(1))
    batch = collate(random_pairs(2), "padded")
    plain = ResponseLogprobs(model, "padded", "fp32")(batch).logprobs
    passes.clear()
    scored = policy(batch, lambda first, last, logprobs, _: torch.ones_like(logprobs))
    scored.handle.backward()
    assert len(passes) == 2
    assert torch.equal(scored.logprobs, plain)


def test_a_saved_policy_holds_adapter_and_merged_model_that_agree(initial: Path, tmp_path: Path) -> None:
    policy = moved(build_policy(lora(), initial))
    expected = logits(policy)
    assert not torch.allclose(expected, logits(tiny.model()), atol=0.1)
    save_policy(policy, lora(), initial, tmp_path)
    merged = load_model(tmp_path, CPU)
    torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=1e-4)
    on_base = PeftModel.from_pretrained(load_model(initial, CPU), tmp_path / ADAPTER)
    torch.testing.assert_close(logits(on_base), expected, atol=1e-4, rtol=1e-4)
    assert not list(tmp_path.rglob("*.bin"))


def test_a_saved_full_policy_has_no_adapter_and_keeps_tokenizer_and_template(initial: Path, tmp_path: Path) -> None:
    policy = moved(build_policy(TrainConfig(), initial))
    expected = logits(policy)
    save_policy(policy, TrainConfig(), initial, tmp_path)
    assert not (tmp_path / ADAPTER).exists()
    torch.testing.assert_close(logits(load_model(tmp_path, CPU)), expected)
    messages = [{"role": "user", "content": "Hi"}]
    render = {"tokenize": False, "add_generation_prompt": True}
    assert load_tokenizer(tmp_path).apply_chat_template(messages, **render) == tiny.tokenizer().apply_chat_template(
        messages, **render
    )
    assert load_tokenizer(tmp_path).eos_token == "<|im_end|>"


@pytest.mark.parametrize("config", [TrainConfig(), lora()])
def test_weights_are_stored_as_they_were_trained(tmp_path: Path, config: TrainConfig) -> None:
    """A base in bfloat16 cannot hold an update of a millionth."""
    initial = tmp_path / "initial"
    tiny.model().to(torch.bfloat16).save_pretrained(initial / MODEL)
    tiny.tokenizer().save_pretrained(initial / MODEL)
    policy = build_policy(config, initial)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data += 1e-6
    expected = logits(policy)
    save_policy(policy, config, initial, tmp_path)
    torch.testing.assert_close(logits(load_model(tmp_path, CPU)), expected, atol=1e-5, rtol=1e-5)
    assert not torch.equal(logits(load_model(tmp_path, CPU)), logits(load_model(initial, CPU)))
    assert AutoConfig.from_pretrained(tmp_path / MODEL).dtype == torch.bfloat16  # what servers load it in


def test_what_the_adapter_leaves_alone_keeps_its_full_precision(tmp_path: Path) -> None:
    """The frozen base is rounded to bfloat16 while it is trained on, but the policy is merged into the base as it is
    stored, here float32 weights that bfloat16 does not hold."""
    initial = tiny.save(tmp_path / "initial" / MODEL).parent
    config = lora(target_modules=("q_proj",)).model_copy(update={"precision": "bf16"})
    policy = freeze(build_policy(config, initial), config.precision)
    rounded = [p for n, p in policy.named_parameters() if p.dtype == torch.bfloat16]
    assert rounded
    save_policy(moved(policy), config, initial, tmp_path)
    before, after = (load_model(folder, CPU).state_dict() for folder in (initial, tmp_path))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == torch.float32
        assert torch.equal(tensor, after[name]) is ("q_proj" not in name), name
        assert not torch.equal(tensor, tensor.bfloat16().float()) or tensor.dim() == 1
    change = after["model.layers.0.self_attn.q_proj.weight"] - before["model.layers.0.self_attn.q_proj.weight"]
    assert torch.linalg.matrix_rank(change.double(), rtol=1e-4) == 4


def row(loss: float, pairs: float, **others: float) -> dict[str, float]:
    return {"loss": loss, "reward_accuracy": 0.5, "reward_margin": 0.0, "kl": 0.0, "pairs": pairs, **others}


def test_the_summary_is_the_mean_over_the_last_fifth_by_hand() -> None:
    """Of ten steps the last two: losses 0.4 of 16 pairs and 0.1 of 8: (16 * 0.4 + 8 * 0.1) / 24 = 0.3."""
    metrics = [row(0.69, 16)] * 8 + [row(0.4, 16, reward_margin=1.0, kl=3.0), row(0.1, 8, reward_accuracy=1.0)]
    summary = train.summarise(metrics)
    assert summary == {
        "steps": 10,
        "first_loss": 0.69,
        "loss": pytest.approx(0.3),
        "reward_accuracy": pytest.approx(2 / 3),
        "reward_margin": pytest.approx(2 / 3),
        "kl": pytest.approx(2.0),
    }


def test_the_summary_of_few_steps_is_the_last_one() -> None:
    assert train.summarise([row(0.7, 4), row(0.5, 4)])["loss"] == 0.5
    assert train.summarise([row(0.7, 4)])["loss"] == train.summarise([row(0.7, 4)])["first_loss"] == 0.7


def test_the_summary_of_a_task_is_the_mean_over_its_pairs() -> None:
    """Of ten steps the last two: 0.9 of 1 pair and 0.3 of 2 make 0.5; the other task is in one of them only."""
    steps = [row(0.5, 4)] * 8
    steps += [row(0.5, 4, **{f"task/a/{name}": 0.9 for name in BY_TASK}, **{"task/a/pairs": 1.0})]
    steps += [row(0.5, 4, **{f"task/a/{name}": 0.3 for name in BY_TASK}, **{"task/a/pairs": 2.0},
                  **{f"task/b/{name}": 0.1 for name in BY_TASK}, **{"task/b/pairs": 2.0})]  # fmt: skip
    tasks = train.summarise(steps)["tasks"]
    assert tasks == {task: pytest.approx(dict.fromkeys(BY_TASK, mean)) for task, mean in (("a", 0.5), ("b", 0.1))}


def test_the_summary_has_no_divergence_where_none_was_measured() -> None:
    rows = [{name: value for name, value in row(0.5, 4).items() if name != "kl"}]
    assert set(train.summarise(rows)) == {"steps", "first_loss", "loss", "reward_accuracy", "reward_margin"}


@pytest.mark.parametrize("what", ["the loss is", "the gradient is"])
def test_a_step_that_is_not_finite_ends_the_training_with_advice(what: str) -> None:
    reason = session.explain(NotFiniteError(3, what, []), TrainResources())
    assert f"{what} not finite at step 3; lower train.learning_rate" in reason
    assert "train.precision: fp32" in reason
    assert "pairs" not in reason


def test_the_pairs_whose_loss_is_not_finite_are_named_but_not_all_of_them() -> None:
    named = session.explain(NotFiniteError(3, "the loss is", ["a", "b"]), TrainResources())
    assert "at step 3 for the pairs a, b; lower" in named
    many = session.explain(NotFiniteError(3, "the loss is", [f"p{i}" for i in range(13)]), TrainResources())
    assert "p0, p1" in many
    assert "p9 and 3 more; lower" in many
    assert "p10" not in many


def test_a_micro_batch_that_does_not_fit_comes_with_what_to_lower() -> None:
    error = MicroBatchError("out of memory in a micro-batch of 50 tokens, 1 pairs: a")
    reason = session.explain(error, TrainResources(micro_batch_tokens=123))
    assert reason.startswith(str(error))
    for advice in ("resources.train.micro_batch_tokens (123)", "checkpointing: true", "prepare.max_length"):
        assert advice in reason


def test_a_users_functions_error_is_passed_on_as_it_is() -> None:
    assert session.explain(UserFunctionError("mine:loss returned a float"), TrainResources()) == (
        "mine:loss returned a float"
    )


@pytest.mark.parametrize(
    ("resources", "workers", "each"),
    [
        (TrainResources(workers=3), 3, {"CPU": 2}),
        (TrainResources(workers=(1, 3)), (1, 3), {"CPU": 2}),
        (TrainResources(workers=(2, 2), gpus=0.5), 2, {"CPU": 2, "GPU": 0.5}),
    ],
)
def test_ray_train_is_asked_for_a_number_or_a_range_of_workers(
    resources: TrainResources, workers: int | tuple[int, int], each: dict[str, float]
) -> None:
    scaling = distributed.scaling(resources, 2)
    assert scaling.num_workers == workers
    assert scaling.resources_per_worker == each
    assert scaling.use_gpu is ("GPU" in each)
