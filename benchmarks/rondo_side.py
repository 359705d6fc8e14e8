"""One timed training by Rondo, without Ray around it; prints one line of JSON. ``train_vs_trl`` starts it."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.setup import encoded
from stages.core.forward.config import Precision
from stages.core.forward.layout import choose_layout
from stages.core.forward.logprobs import ResponseLogprobs, freeze
from stages.core.forward.packing import collate, micro_batches
from stages.core.tokens.pair import EncodedPair
from stages.io.allocator import keep_freed_memory
from stages.io.filenames import MODEL
from stages.policy.load import device_of_worker
from stages.train.config import TrainConfig
from stages.train.loop import train_steps
from stages.train.policy import build_optimizer, build_policy, without_dropout
from stages.train.worker import Worker


class Pairs:
    """Pairs in memory with their reference log-probabilities, in the order in which they are asked for."""

    def __init__(self, pairs: list[EncodedPair], order: list[int]) -> None:
        self.items = pairs
        self.order = order
        self.logprobs = torch.zeros(3, len(pairs))

    def __len__(self) -> int:
        return len(self.items)

    def pairs(self, indices: Sequence[int]) -> list[EncodedPair]:
        return [self.items[self.order[index]] for index in indices]

    def reference(self, indices: Sequence[int]) -> Tensor:
        return self.logprobs[:, [self.order[index] for index in indices]]

    def mismatched(self, indices: Sequence[int]) -> list[EncodedPair]:
        raise NotImplementedError


def in_file_order(count: int, seed: int) -> list[int]:
    """What undoes the shuffling of the first epoch, so that both sides see the same pairs in the same steps."""
    from stages.train.batching import batch_indices

    shuffled = batch_indices(0, count, count, 1, seed)
    order = [0] * count
    for place, index in enumerate(shuffled):
        order[index] = place
    return order


@torch.no_grad()
def score(model: ResponseLogprobs, data: Pairs, tokens: int) -> float:
    """Fill in the reference log-probabilities; returns the seconds it took."""
    started = time.perf_counter()
    for group in micro_batches(data.items, model.layout, tokens):
        batch = collate([data.items[i] for i in group], model.layout).to(device_of_worker())
        scored = model(batch).logprobs.view(-1, 2).cpu()
        data.logprobs[0, group], data.logprobs[1, group] = scored[:, 0], scored[:, 1]
    return time.perf_counter() - started


def trainable(
    config: TrainConfig, artifact: Path, precision: Precision
) -> tuple[ResponseLogprobs, torch.optim.Optimizer]:
    """A policy as a training worker builds it, with its optimizer."""
    policy = build_policy(config, artifact)
    layout = choose_layout(policy, config.layout)
    model = ResponseLogprobs(freeze(policy, precision), layout, precision)
    without_dropout(model)
    return model, build_optimizer([p for p in model.parameters() if p.requires_grad], config)


def configuration(options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the training."""
    lora = {"rank": 8, "alpha": 32, "target_modules": ["q_proj", "v_proj"]} if options["mode"] == "lora" else None
    return {
        "learning_rate": 1e-4 if lora else 1e-6, "batch_size": options["batch_size"], "warmup": 0.0,
        "schedule": "constant", "precision": options["precision"], "lora": lora,
    }  # fmt: skip


def run(options: dict[str, Any]) -> dict[str, Any]:
    keep_freed_memory()
    torch.set_num_threads(options["threads"])
    folder = Path(options["model"])
    config = TrainConfig.model_validate(configuration(options))
    # build_policy takes an artifact: a folder with the model in it.
    artifact = folder.parent / "artifact"
    artifact.mkdir(exist_ok=True)
    if not (artifact / MODEL).exists():
        (artifact / MODEL).symlink_to(folder.resolve())
    model, optimizer = trainable(config, artifact, config.precision)
    pairs = encoded(folder, options["lengths"], options["pairs"])
    data = Pairs(pairs, in_file_order(len(pairs), config.seed))
    reference_seconds = score(model, data, options["micro_batch_tokens"])
    worker = Worker(device=device_of_worker(), micro_batch_tokens=options["micro_batch_tokens"])
    marks, rows = [time.perf_counter()], []
    for row in train_steps(model, optimizer, data, config, worker, model.layout):
        rows.append(row)
        marks.append(time.perf_counter())
    answers = sum(len(p.chosen_ids) + len(p.rejected_ids) for p in pairs)
    return {
        "marks": marks, "losses": [row["loss"] for row in rows], "rows": rows, "response_tokens": answers,
        "reference_seconds": reference_seconds,
    }  # fmt: skip


if __name__ == "__main__":
    result = run(json.loads(sys.argv[1]))
    result["peak_memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if torch.cuda.is_available():
        result["peak_device_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    print("RESULT " + json.dumps(result), flush=True)
