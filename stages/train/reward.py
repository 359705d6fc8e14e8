"""A reward model in training: made of a policy, and saved as transformers loads it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from stages.base import StageError
from stages.core.forward.layout import choose_layout
from stages.core.forward.packing import collate, in_order, micro_batches
from stages.core.forward.rewards import ResponseRewards
from stages.core.losses.bradley_terry import BradleyTerry
from stages.core.losses.inputs import loss_input
from stages.core.tokens.pair import EncodedPair
from stages.data.shards import ShardData
from stages.io.artifact import Artifact
from stages.io.filenames import MODEL
from stages.policy.adapter_settings import prompt_adapter
from stages.policy.adapters import wrap
from stages.policy.files import CONFIG, copy_all_but_weights
from stages.policy.load import device_of_worker, load_encoder
from stages.policy.reward import load_reward_model
from stages.policy.save import save_weights
from stages.train.arguments import REWARDED
from stages.train.bases import Built
from stages.train.closing import ClosedPairs, padding
from stages.train.config import RewardConfig
from stages.train.policy import lora_settings

LARGEST = 1e-3
"""Of the difference between a reward in training and that of the stored model, both in float32."""
_TOKENS, _PROBED = 2048, 4


@contextmanager
def built(config: RewardConfig, initial: Path, device: torch.device) -> Iterator[Built]:
    """The policy's decoder with a new head of zeros, so that all rewards are 0 and the first loss is ln 2 without
    margin; with an adapter, the head is trained whole beside it.

    Raises:
        StageError: the policy has virtual tokens, or its family has no sequence-classification model with such a head.
    """
    model = _build(config, initial)
    yield Built(model.to(device), choose_layout(model.to(device), config.layout))


def _build(config: RewardConfig, initial: Path) -> Any:
    if prompt_adapter(initial) is not None:
        raise StageError("a policy of virtual tokens cannot become a reward model; take its base")
    attention = "eager" if device_of_worker().type == "cpu" else "sdpa"
    try:
        model, found = AutoModelForSequenceClassification.from_pretrained(
            initial / MODEL, num_labels=1, output_loading_info=True, dtype=torch.float32, use_safetensors=True,
            attn_implementation=attention, local_files_only=True, trust_remote_code=False,
        )  # fmt: skip
    except ValueError as error:
        raise StageError(f"no reward model can be made of this policy: {str(error).splitlines()[0]}") from error
    if (missing := set(found["missing_keys"])) != {"score.weight"}:
        raise StageError(f"no reward model can be made of this policy: {', '.join(sorted(missing))} would be random")
    torch.nn.init.zeros_(model.score.weight)
    if config.lora is not None:
        head = model.score
        model = wrap(model, {**lora_settings(config.lora), "exclude_modules": ["score"]})
        head.weight.requires_grad_(True)
    return model


def finish(
    trained: ResponseRewards, weights: Mapping[str, Tensor], config: RewardConfig, data: Any,
    inputs: Mapping[str, Artifact], folder: Path,
) -> None:  # fmt: skip
    """Write the finished reward model, and what is known of it; ``weights`` are the whole ones of a sharded model."""
    initial = inputs["policy"].folder()
    found = weights or {name: value for name, value in trained.model.named_parameters() if value.requires_grad}
    own = {name: value.detach().cpu() for name, value in found.items()}
    said: dict[str, Any] = {"stored_difference": save(own, config, initial, folder, shortest(data))}
    if (heldout := inputs.get("heldout")) is not None:
        pairs = ClosedPairs(ShardData(heldout), load_encoder(initial))
        stored = ResponseRewards(load_reward_model(folder, device_of_worker()).eval(), "padded", "fp32")
        said["heldout"] = ranking(stored, pairs, config)
    (folder / REWARDED).write_text(json.dumps(said), encoding="utf-8")


def save(
    weights: Mapping[str, Tensor], config: RewardConfig, initial: Path, folder: Path,
    probe: Sequence[EncodedPair],
) -> float:  # fmt: skip
    """Write the model with its adapter merged, in float32, and all else of the initial policy; ``weights`` are the
    trained ones by name. Returns the largest difference between its rewards of the ``probe`` as trained and as stored,
    both in float32.

    Raises:
        StageError: it is more than rounding explains.
    """
    whole = _build(config, initial)
    trained = {name for name, parameter in whole.named_parameters() if parameter.requires_grad}
    assert trained == weights.keys(), sorted(trained ^ weights.keys())
    whole.load_state_dict(weights, strict=False)
    whole = whole.to(device_of_worker())
    before = rewards(ResponseRewards(whole.eval(), "padded", "fp32"), probe)
    merged = whole.merge_and_unload() if config.lora is not None else whole
    target = folder / MODEL
    copy_all_but_weights(initial / MODEL, target)
    settings = json.loads((target / CONFIG).read_text(encoding="utf-8"))
    encoder = load_encoder(initial)
    named = {
        "architectures": [type(merged).__name__], "id2label": {"0": "reward"}, "label2id": {"reward": 0},
        "pad_token_id": padding(encoder, settings.get("pad_token_id")),
    }  # fmt: skip
    (target / CONFIG).write_text(json.dumps(settings | named, indent=2) + "\n", encoding="utf-8")
    save_weights(merged, target)
    stored = load_reward_model(folder, device_of_worker()).eval()
    difference = float((rewards(ResponseRewards(stored, "padded", "fp32"), probe) - before).abs().max())
    if not difference <= LARGEST:
        raise StageError(f"the stored reward model is not the one that was trained: rewards differ by {difference:.2g}")
    return difference


@torch.no_grad()
def rewards(model: ResponseRewards, pairs: Sequence[EncodedPair]) -> Tensor:
    """Rewards of chosen and rejected responses, float32 [pairs, 2]."""
    device = next(model.parameters()).device
    groups = micro_batches(pairs, model.layout, _TOKENS)
    batches = (collate([pairs[index] for index in group], model.layout).to(device) for group in groups)
    return in_order(groups, [model(batch).logprobs for batch in batches])


def ranking(model: ResponseRewards, data: ClosedPairs, config: RewardConfig) -> dict[str, float]:
    """How a reward model ranks held-out pairs: ``pairs``, ``loss`` and means of ``reward_accuracy`` and
    ``reward_margin``."""
    pairs = data.pairs(range(len(data)))
    found = rewards(model, pairs)
    x = loss_input(pairs, found.flatten(), torch.zeros(2 * len(pairs)), torch.zeros(3, len(pairs)), None)
    outcome = BradleyTerry(config.margin)(x, pairs)
    margins = outcome.chosen_reward - outcome.rejected_reward
    return {
        "pairs": len(pairs),
        "loss": float(outcome.losses.detach().mean()),
        "reward_accuracy": float((margins > 0).float().mean()),
        "reward_margin": float(margins.mean()),
    }


def shortest(data: ClosedPairs) -> list[EncodedPair]:
    """A few short pairs, to prove with that the stored model is the trained one."""
    first = data.pairs(range(min(64, len(data))))
    return sorted(first, key=lambda pair: len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids))[
        :_PROBED
    ]
