"""Shares of a model in main memory, beside the cards that they are worked with on. There is no card here: the workers'
mesh is one of cards, and what would be brought to one is an error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.distributed.tensor import DTensor, Shard

from stages.base import TrainResources
from stages.core.forward.logprobs import ResponseLogprobs
from stages.io.filenames import MODEL
from stages.train import checkpoints, distributed, loop, save_shares, session, sharding
from stages.train.bases import Built
from stages.train.checkpoints import TrainState
from stages.train.config import TrainConfig
from stages.train.policy import HollowPolicy, build_optimizer, hollow_policy
from tests import zoo

CPU, CARD = torch.device("cpu"), torch.device("cuda", 0)
FULL = TrainConfig(precision="fp32", max_grad_norm=0.5)
OFFLOADED = TrainResources(workers=2, strategy="fsdp", gpus=1, offload=True)


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """Of the card of a single worker, which talks as those on CPUs do."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield DeviceMesh("cuda", [0])
    dist.destroy_process_group()


def shared(folder: Path, mesh: DeviceMesh) -> HollowPolicy:
    """A policy in shares, whose weights are yet to be read, as FSDP leaves it."""
    zoo.model("llama").save_pretrained(folder / MODEL)
    made = hollow_policy(FULL, folder, CPU)
    assert made is not None
    made.base.to_meta()
    for place in made.base.places:
        place.put(DTensor.from_local(place.weight.detach(), mesh, [Shard(0)]))
    return made


def local(weight: Tensor) -> Tensor:
    assert isinstance(weight, DTensor)
    found: Tensor = weight.detach().to_local()
    assert found.device == CPU
    return found


def test_shares_are_read_trained_and_kept_without_a_card(tmp_path: Path, mesh: DeviceMesh) -> None:
    made = shared(tmp_path, mesh)
    made.base.fill(sharding.shares_on(CARD, offload=True))
    before = load_file(tmp_path / MODEL / "model.safetensors")
    weights = dict(made.policy.named_parameters())
    assert all(torch.equal(local(weights[name]), before[name]) for name in before)

    optimizer = build_optimizer(weights.values(), FULL)
    for weight in weights.values():
        weight.grad = torch.ones_like(weight.detach())
    norm = loop._clip(list(weights.values()), FULL.max_grad_norm)
    assert norm.device == CPU
    assert norm.item() == pytest.approx(sum(weight.numel() for weight in weights.values()) ** 0.5)
    gradients = [local(weight.grad) for weight in weights.values() if weight.grad is not None]
    assert sum(float(gradient.square().sum()) for gradient in gradients) == pytest.approx(0.25, rel=1e-3)
    optimizer.step()
    for weight in weights.values():
        assert {local(moment).shape for key, moment in optimizer.state[weight].items() if key != "step"} == {
            weight.shape
        }

    state = TrainState(made.policy, optimizer, 1, [{"steps": 2, "step": 1}])
    (kept := tmp_path / "kept").mkdir()
    checkpoints._save_share(checkpoints._tensors(state), kept)
    (kept / "metrics.jsonl").write_text("")
    (kept / "progress.json").write_text('{"step": 1}')
    trained = {name: local(weight).clone() for name, weight in weights.items()}
    moments = {name: local(optimizer.state[weight]["exp_avg"]).clone() for name, weight in weights.items()}
    for weight in weights.values():
        local(weight).zero_()
    again = build_optimizer(weights.values(), FULL)
    checkpoints.load(kept, made.policy, again)
    for name, weight in weights.items():
        assert torch.equal(local(weight), trained[name])
        assert torch.equal(local(again.state[weight]["exp_avg"]), moments[name])

    save_shares.save(made, tmp_path, tmp_path / "out")
    written = load_file(tmp_path / "out" / MODEL / "model.safetensors")
    assert all(torch.equal(written[name], trained[name]) for name in before)
    assert any(not torch.equal(written[name], before[name]) for name in before)


@pytest.mark.parametrize(("device", "pinned"), [(CARD, True), (CPU, False)])
def test_every_layer_is_offloaded_and_pinned_for_a_card(
    device: torch.device, pinned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(sharding, "init_device_mesh", lambda *_: None)
    monkeypatch.setattr(
        sharding, "fully_shard", lambda module, **given: asked.append((module, given["offload_policy"]))
    )
    model = ResponseLogprobs(zoo.model("llama"), "shared", "fp32")
    sharding._shard(model, device, 2, True)
    assert [module for module, _ in asked] == [*model.model.model.layers, model]
    assert [policy for _, policy in asked] == [CPUOffloadPolicy(pin_memory=pinned)] * len(asked)
    asked.clear()
    sharding._shard(model, device, 2, False)
    assert not any(isinstance(policy, CPUOffloadPolicy) for _, policy in asked)


def test_a_worker_reads_its_shares_to_where_they_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Enough(Exception):
        pass

    def fill(device: torch.device) -> None:
        asked.append(device)
        raise Enough

    def distribute(model: Any, *given: Any) -> Any:
        asked.append(given)
        return model

    shares: Any = SimpleNamespace(base=SimpleNamespace(fill=fill))
    worker: Any = SimpleNamespace(rank=0, world=2, abandoned=False)
    monkeypatch.setattr(session, "device_of_worker", lambda: CARD)
    monkeypatch.setattr(session, "return_freed_memory", lambda: None)
    monkeypatch.setattr(session, "sharing", lambda *_: Built(zoo.model("llama"), "shared", shares))
    monkeypatch.setattr(session, "distribute", distribute)
    for resources in (OFFLOADED, OFFLOADED.model_copy(update={"offload": False})):
        arguments: Any = SimpleNamespace(
            config=FULL, resources=resources, importable=(), cpus=torch.get_num_threads(), output=None,
            inputs={"policy": SimpleNamespace(folder=lambda: tmp_path)},
        )  # fmt: skip
        with pytest.raises(Enough):
            session.train_worker(arguments, worker)
    assert asked == [("fsdp", CARD, True), CPU, ("fsdp", CARD, False), CARD]


@pytest.mark.parametrize(("offload", "backend"), [(True, "cpu:gloo,cuda:nccl"), (False, None)])
def test_workers_talk_from_main_memory_too(offload: bool, backend: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Trainer:
        def __init__(self, *_: Any, **given: Any) -> None:
            asked.append(given["torch_config"].backend)

        def fit(self) -> None:
            pass

    monkeypatch.setattr(distributed, "_Trainer", Trainer)
    arguments: Any = SimpleNamespace(resources=OFFLOADED.model_copy(update={"offload": offload}), cpus=1)
    distributed.fit(arguments)
    assert asked == [backend]
