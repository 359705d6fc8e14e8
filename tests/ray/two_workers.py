"""Training on gloo without Ray: the program of one of two worker processes, and the same with a single worker.

``python -m tests.ray.two_workers RANK PORT FOLDER`` goes through CASES with another process of the other rank.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from stages.core.forward.layout import choose_layout
from stages.core.forward.logprobs import ResponseLogprobs, freeze
from stages.policy.load import load_policy
from stages.train import checkpoints, save_shares
from stages.train.bases import sharing
from stages.train.checkpoints import TrainState
from stages.train.config import TrainConfig
from stages.train.loop import train_steps
from stages.train.policy import build_optimizer, build_policy, rebuild_policy, save_policy, without_dropout
from stages.train.sharding import Strategy, distribute, shards, whole_weights
from stages.train.worker import Worker
from tests.memory import MemoryData, random_pairs

CPU = torch.device("cpu")
HALF = 3
"""Optimizer steps before a checkpoint."""
ADAPTERS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora": {"rank": 4}},
    "dora": {"lora": {"rank": 4, "dora": True}},
    "ia3": {"peft": {"peft_type": "IA3"}},
    "vera": {"peft": {"peft_type": "VERA", "r": 4, "target_modules": ["q_proj", "o_proj"]}},
    "prefix": {"peft": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3}},
}


@dataclass(frozen=True)
class Case:
    """One training on two workers. ``base``: the folder of the policy that it begins with; ``start``: the name of a run
    to go on from; ``stop``: end with a checkpoint."""

    adapter: str = "full"
    strategy: Strategy = "fsdp"
    settings: dict[str, Any] = field(default_factory=dict)
    checkpointing: bool = False
    offload: bool = False
    base: str = "policy"
    start: str = ""
    stop: bool = False

    @property
    def config(self) -> TrainConfig:
        base = {"batch_size": 5, "epochs": 2, "learning_rate": 1e-2, "weight_decay": 0.1, "precision": "fp32"}
        return TrainConfig.model_validate({**base, **ADAPTERS[self.adapter], **self.settings})


# 13 pairs in steps of 5: the last step has one pair, so that one of the two workers has none.
CASES: dict[str, Case] = {
    **{name: Case(name) for name in ADAPTERS},
    **{f"{name}-ddp": Case(name, "ddp") for name in ("full", "lora")},
    **{f"kto-{way}": Case("full", way, {"loss": "kto"}) for way in ("ddp", "fsdp")},
    **{f"bco-{way}": Case("full", way, {"loss": "bco"}) for way in ("ddp", "fsdp")},
    "padded": Case("full", settings={"layout": "padded"}),
    **{f"{name}-checkpointing": Case(name, checkpointing=True) for name in ("full", "lora")},
    **{f"{name}-offload": Case(name, offload=True) for name in ("full", "lora", "ia3")},
    "padded-checkpointing": Case("full", settings={"layout": "padded"}, checkpointing=True),
    **{f"{name}-bf16": Case(name, settings={"precision": "bf16"}) for name in ("full", "lora", "dora")},
    "full-bf16-own-layers": Case("full", settings={"precision": "bf16"}, checkpointing=True, base="gemma2"),
    **{f"{name}-mixture": Case(name, base="mixture") for name in ("full", "lora")},
    **{f"{name}-half": Case(name, stop=True) for name in ("full", "lora", "ia3")},
    **{f"{name}-half-ddp": Case(name, "ddp", stop=True) for name in ("full", "lora")},
    **{f"{name}-from-fsdp": Case(name, start=f"{name}-half") for name in ("full", "lora", "ia3")},
    **{f"{name}-from-ddp": Case(name, start=f"{name}-half-ddp") for name in ("full", "lora")},
    **{f"{name}-offload-half": Case(name, offload=True, stop=True) for name in ("full", "lora")},
    **{f"{name}-from-offload": Case(name, start=f"{name}-offload-half") for name in ("full", "lora")},
    **{f"{name}-offload-from-fsdp": Case(name, offload=True, start=f"{name}-half") for name in ("full", "lora")},
    **{f"{name}-from-one": Case(name, start=f"{name}-one") for name in ("full", "lora", "ia3")},
    **{f"{name}-ddp-from-fsdp": Case(name, "ddp", start=f"{name}-half") for name in ("full", "lora")},
}


def train(case: Case, folder: Path, name: str, tokens: int) -> list[dict[str, float]]:
    """Train on this process's rank of the group (alone without one) as a Ray Train worker does.

    ``folder`` holds the case's base; a checkpoint, or else the finished policy, is put into its sub-folder ``name``.
    """
    world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    config, initial, out = case.config, folder / case.base, folder / name
    out.mkdir(exist_ok=True)
    torch.manual_seed(config.seed)
    sharded = shards(case.strategy, world)
    shares = sharing(config, initial, CPU) if sharded else None
    policy = shares.model if shares else build_policy(config, initial, CPU)
    layout = shares.layout if shares else choose_layout(policy, config.layout)
    reference = load_policy(initial, CPU)
    data = MemoryData(random_pairs(13)).scored_by(reference, layout, config.precision)
    bare = ResponseLogprobs(freeze(policy, config.precision), layout, config.precision, case.checkpointing)
    model = distribute(without_dropout(bare), case.strategy, CPU, case.offload)
    if shares is not None and shares.shares is not None:
        shares.shares.base.fill(CPU)
    optimizer = build_optimizer([p for p in model.parameters() if p.requires_grad], config)
    state = TrainState(bare, optimizer, 0, [])
    if case.start:
        state = checkpoints.load(folder / case.start, bare, optimizer)
    worker = Worker(rank, world, CPU, tokens, _all_sum, sharded)
    for row in train_steps(model, optimizer, data, config, worker, layout, state.step):
        state.step = int(row["step"])
        state.metrics.append(row)
        if case.stop and state.step == HALF:
            break
    if case.stop:
        if sharded or rank == 0:
            checkpoints.save(state, out)
        return state.metrics
    if shares is not None and shares.shares is not None:
        save_shares.save(shares.shares, initial, out if rank == 0 else None)
        return state.metrics
    weights = whole_weights(policy) if sharded else {}
    if rank == 0:
        save_policy(rebuild_policy(config, initial, weights) if sharded else policy, config,
                    initial, out)  # fmt: skip
    return state.metrics


def _all_sum(value: Tensor) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def main(rank: int, port: str, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for name, case in CASES.items():
        rows = train(case, folder, name, tokens=60)
        dist.barrier()
        if rank == 0:
            (folder / f"{name}.json").write_text(json.dumps(rows))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
