"""Rondo's side of ``gpu``: its training loop without Ray around it, in a layout that is given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.gpu_setup import (
    LORA,
    Size,
    clock,
    compiled,
    needed,
    peak_memory,
    random_model,
    random_pairs,
    reset_peak,
    tokens_of,
)  # fmt: skip
from stages.core.forward.logprobs import ResponseLogprobs, freeze
from stages.core.forward.packing import Layout, collate, micro_batches
from stages.core.tokens.pair import EncodedPair
from stages.policy.adapters import wrap
from stages.train.batching import batch_indices
from stages.train.config import TrainConfig
from stages.train.loop import train_steps
from stages.train.worker import Worker


class Repeated:
    """Pairs with their reference log-probabilities that a training of one epoch sees ``times`` times, in file order.

    Every pass has the same batches as the first, so that after it rows of all their lengths have been compiled for.
    """

    def __init__(self, pairs: list[EncodedPair], times: int, seed: int) -> None:
        self.items = pairs
        self.times = times
        self.logprobs = torch.zeros(3, len(pairs))
        shuffled = batch_indices(0, len(self), len(self), 1, seed)
        self.places = {index: place % len(pairs) for place, index in enumerate(shuffled)}

    def __len__(self) -> int:
        return self.times * len(self.items)

    def pairs(self, indices: Sequence[int]) -> list[EncodedPair]:
        return [self.items[self.places[index]] for index in indices]

    def reference(self, indices: Sequence[int]) -> Tensor:
        return self.logprobs[:, [self.places[index] for index in indices]]

    def mismatched(self, indices: Sequence[int]) -> list[EncodedPair]:
        raise NotImplementedError


@dataclass(frozen=True)
class Setting:
    """A training: what the model becomes, how pairs are laid out and where it all happens."""

    mode: str
    layout: Layout
    device: torch.device
    batch_size: int
    micro_batch_tokens: int
    precision: str = "bf16"
    learning_rate: float = 1e-6

    @property
    def config(self) -> TrainConfig:
        return TrainConfig.model_validate(
            {
                "learning_rate": self.learning_rate, "batch_size": self.batch_size, "warmup": 0.0,
                "schedule": "constant", "precision": self.precision, "layout": self.layout,
            }
        )  # fmt: skip

    def prepared(self, model: Any) -> tuple[ResponseLogprobs, torch.optim.Optimizer]:
        """A model as a training worker has it (``train.policy``), with its optimizer. It has no dropout to turn off."""
        policy = wrap(model, {"peft_type": "LORA", **LORA}) if self.mode == "lora" else model
        scorer = ResponseLogprobs(freeze(policy, self.precision), self.layout, self.precision)
        trained = [p for p in scorer.parameters() if p.requires_grad]
        return scorer, torch.optim.AdamW(trained, lr=self.learning_rate, weight_decay=0.0, fused=True)


def score(model: ResponseLogprobs, data: Repeated, setting: Setting) -> None:
    """Fill in the reference's log-probabilities, in the micro-batches of the training.

    A graph is recorded and thrown away: attention would be compiled once more for passes without one.
    """
    for start in range(0, len(data.items), setting.batch_size):
        batch = data.items[start : start + setting.batch_size]
        for group in micro_batches(batch, model.layout, setting.micro_batch_tokens):
            scored = model(collate([batch[i] for i in group], model.layout).to(setting.device)).logprobs
            places = [start + i for i in group]
            data.logprobs[0, places], data.logprobs[1, places] = scored.detach().view(-1, 2).cpu().unbind(1)


def measure(size: Size, setting: Setting, lengths: str, steps: int, passes: int) -> dict[str, Any]:
    """Train on the batches of ``steps`` optimizer steps in one pass that warms up and ``passes`` that are timed.

    Returns:
        Figures of the timed steps; memory is the highest of all passes.
    """
    device = setting.device
    reset_peak(device)
    pairs = random_pairs(lengths, steps * setting.batch_size, size.model["vocab_size"], size.shorter)
    data = Repeated(pairs, 1 + passes, setting.config.seed)
    model, optimizer = setting.prepared(random_model(size.model, device))
    before, started = compiled(), clock(device)
    score(model, data, setting)
    reset_peak(device)
    worker = Worker(device=device, micro_batch_tokens=setting.micro_batch_tokens)
    losses, marks, counts = [], [], []
    for number, row in enumerate(train_steps(model, optimizer, data, setting.config, worker, setting.layout), 1):
        losses.append(row["loss"])
        forget_masks(device)
        if number in (steps, (1 + passes) * steps):
            marks.append(clock(device))
            counts.append(compiled())
    model.release()
    return {
        **rates(size, pairs, setting.mode, (marks[1] - marks[0]) / passes), "peak_memory_gib": peak_memory(device),
        "first_loss_from_log_2": losses[0] - math.log(2), "last_loss": losses[-1],
        "warm_up_seconds": round(marks[0] - started, 1),
        "compiled_in_warm_up": difference(before, counts[0]),
        "compiled_in_timed_steps": difference(counts[0], counts[1]),
    }  # fmt: skip


def forget_masks(device: torch.device) -> None:
    """No step of a training meets the rows of an earlier one, and none here is to find their masks."""
    if device.type == "cuda":
        from stages.core.forward import flex

        flex._block_mask.cache_clear()


def rates(size: Size, pairs: Sequence[EncodedPair], mode: str, seconds: float) -> dict[str, float]:
    """What one pass over the pairs in so many seconds comes to."""
    return {
        "pairs_per_second": round(len(pairs) / seconds, 3), "tokens_per_second": round(tokens_of(pairs) / seconds, 1),
        "needed_tflops": needed(size.model, pairs, mode) / seconds / 1e12, "seconds_per_pass": round(seconds, 4),
    }  # fmt: skip


def difference(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: after[name] - before[name] for name in after}


def losses_of(size: Size, device: torch.device, layout: Layout, precision: str, steps: int) -> list[float]:
    """The losses of a small model's first steps, all weights trained on one batch. Weights are drawn on the CPU: they
    are the same wherever it is trained."""
    setting = Setting("full", layout, device, 8, 2**20, precision, 1e-4)
    pairs = random_pairs("realistic", setting.batch_size, size.small["vocab_size"], 16)
    data = Repeated(pairs, steps, setting.config.seed)
    model, optimizer = setting.prepared(random_model(size.small, torch.device("cpu")).to(device))
    score(model, data, setting)
    worker = Worker(device=device, micro_batch_tokens=setting.micro_batch_tokens)
    found = [row["loss"] for row in train_steps(model, optimizer, data, setting.config, worker, layout)]
    model.release()
    return found


def checks(size: Size, device: torch.device, layouts: Sequence[str], steps: int) -> dict[str, Any]:
    """Losses against those of a CPU in float32, and how far the first one is from ln 2 in both precisions."""
    expected = losses_of(size, torch.device("cpu"), "padded", "fp32", steps)
    found: dict[str, Any] = {"cpu_losses": expected, "layouts": {}}
    for name in layouts:
        layout = cast(Layout, name)
        try:
            exact = losses_of(size, device, layout, "fp32", steps)
            rounded = losses_of(size, device, layout, "bf16", 1)
        except Exception as error:  # one layout that fails is a finding; the others are still to be measured
            found["layouts"][name] = {"failed": said(error)}
            continue
        found["layouts"][name] = {
            "losses": exact, "largest_difference": max(abs(a - b) for a, b in zip(exact, expected, strict=True)),
            "from_log_2": {"fp32": exact[0] - math.log(2), "bf16": rounded[0] - math.log(2)},
        }  # fmt: skip
    differences = [each["largest_difference"] for each in found["layouts"].values() if "losses" in each]
    return {**found, "largest_difference": max(differences, default=None)}


def said(error: BaseException) -> str:
    """An error in one line, with what it came from."""
    lines = [line for each in (error, error.__cause__) if each for line in [f"{type(each).__name__}: {each}"]]
    return " | ".join(line.strip().splitlines()[0][:500] for line in lines)
