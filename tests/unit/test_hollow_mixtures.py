"""Mixtures of experts that are built without their weights: what is read of the files, and by which worker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from stages.core.forward.config import KNOWN
from stages.core.forward.layout import agrees
from stages.core.forward.logprobs import ResponseLogprobs, freeze
from stages.io.filenames import MODEL
from stages.policy import save
from stages.policy.hollow import hollow
from stages.policy.load import load_frozen, load_model, product_precision
from stages.policy.stored import Stored
from stages.train import save_shares
from stages.train.bases import sharing
from stages.train.config import LoraConfig, TrainConfig
from stages.train.policy import build_policy, hollow_policy, put_on
from stages.train.sharding import distribute
from tests import zoo
from tests.memory import random_pairs, score

CPU = torch.device("cpu")
FULL, LORA = TrainConfig(), TrainConfig(lora=LoraConfig(rank=4))
MIXTURES = sorted(name for name in KNOWN if "moe" in name or name in (
    "deepseek_v2", "deepseek_v3", "dots1", "flex_olmo", "gpt_oss", "mellum", "minimax_m2", "mixtral", "solar_open",
))  # fmt: skip


@pytest.fixture
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A policy of the family that is asked for, in bfloat16."""
    model = zoo.of_family(getattr(request, "param", "mixtral"))
    model.to(torch.bfloat16).save_pretrained(tmp_path / "policy" / MODEL)
    return tmp_path / "policy"


def weights_file(policy: Path) -> Path:
    return policy / MODEL / "model.safetensors"


@pytest.mark.parametrize("config", [FULL, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("stored", MIXTURES, indirect=True)
def test_a_mixture_in_training_is_the_one_that_is_loaded_whole(stored: Path, config: TrainConfig) -> None:
    precision = product_precision("bf16", CPU)
    torch.manual_seed(3)
    whole = freeze(put_on(load_model(stored, CPU), config), precision)
    torch.manual_seed(3)
    made = hollow_policy(config, stored, CPU)
    assert made is not None
    made.base.fill(CPU)
    own, others = made.policy.state_dict(), whole.state_dict()
    assert own.keys() == others.keys()
    assert all(torch.equal(own[name].float(), others[name].float()) for name in own)
    experts = [name for name, value in own.items() if value.dim() == 3]
    assert experts
    assert {own[name].dtype for name in experts} == {others[name].dtype for name in experts} == {torch.float32}
    pairs = random_pairs(3)
    with torch.no_grad():
        found, expected = (score(each, pairs, "shared", precision) for each in (made.policy, whole))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("stored", MIXTURES, indirect=True)
def test_a_frozen_mixture_gives_what_its_own_forward_pass_gives(stored: Path) -> None:
    assert agrees(load_frozen(stored, CPU, "bf16"), "shared")


@contextmanager
def one_of(world: int, rank: int) -> Iterator[None]:
    """As one of several workers, of which the others do nothing."""
    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(("world", "rank", "experts"), [(2, 0, {0, 1}), (2, 1, {2, 3}), (3, 1, {2, 3}), (3, 2, set())])
@pytest.mark.parametrize("stored", ["mixtral", "deepseek_v3"], indirect=True)
def test_a_worker_reads_the_experts_of_its_share_and_no_others(
    stored: Path, world: int, rank: int, experts: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four experts: three workers get two, two and none."""
    whole = load_model(stored, CPU).state_dict()
    made = sharing(FULL, stored, CPU)
    assert made is not None
    assert made.shares is not None
    asked: set[str] = set()
    read = Stored.read

    def noted(self: Stored, name: str, rows: slice = slice(None)) -> Any:
        asked.add(name)
        return read(self, name, rows)

    monkeypatch.setattr(Stored, "read", noted)
    with one_of(world, rank):
        distribute(ResponseLogprobs(made.model, made.layout, "fp32"), "fsdp", CPU)
        made.shares.base.fill(CPU)
        for place in made.shares.base.places:
            weight = place.weight
            assert isinstance(weight, DTensor)
            share = weight.to_local()
            chunks = whole[place.name].chunk(world)
            expected = chunks[rank] if rank < len(chunks) else share[:0]
            assert torch.equal(share, expected), place.name
    parts = {name.split(".experts.")[1] for name in asked if ".experts." in name}
    assert {int(part.split(".")[0]) for part in parts} == experts
    assert len(parts) == 3 * len(experts)


def test_experts_are_split_again_when_files_are_written(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a file ends in the middle of the experts of a layer."""
    monkeypatch.setattr(save, "_SMALLEST", 1000)
    before = load_file(weights_file(stored))
    made = hollow_policy(FULL, stored, CPU)
    assert made is not None
    made.base.fill(CPU)
    with torch.no_grad():
        for parameter in made.policy.parameters():
            parameter.mul_(2)
    save_shares.save(made, stored, tmp_path / "shares")
    files = sorted((tmp_path / "shares" / MODEL).glob("*.safetensors"))
    found = {name: value for file in files for name, value in load_file(file).items()}
    layer = "model.layers.0.block_sparse_moe.experts."
    assert len({file for file in files for name in load_file(file) if name.startswith(layer)}) > 1
    assert found.keys() == before.keys()
    assert all(torch.equal(found[name], 2 * before[name].float()) for name in found)
    assert save_shares.check(tmp_path / "shares") == len(before)


@pytest.mark.parametrize("what", ["missing", "shorter", "an integer"])
def test_experts_that_do_not_make_up_a_weight_are_not_read(stored: Path, what: str) -> None:
    name = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    weights = load_file(weights_file(stored))
    assert hollow(stored / MODEL, "eager") is not None
    weight = weights.pop(name)
    if what != "missing":
        weights[name] = weight[:-1].clone() if what == "shorter" else weight.to(torch.int8)
    save_file(weights, weights_file(stored), {"format": "pt"})
    assert hollow(stored / MODEL, "eager") is None


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys")  # peft's own, which it does use
@pytest.mark.parametrize("stored", ["qwen3_moe"], indirect=True)
def test_an_adapter_on_experts_is_put_on_a_whole_model_with_the_same_draws(stored: Path) -> None:
    config = TrainConfig(lora=LoraConfig(rank=4, target_modules=("q_proj", "gate_proj", "up_proj", "down_proj")))
    torch.manual_seed(3)
    expected = put_on(load_model(stored, CPU), config)
    torch.manual_seed(3)
    assert hollow_policy(config, stored, CPU) is None
    built = build_policy(config, stored, CPU)
    assert any("experts.lora_" in name or "experts.base_layer" in name for name, _ in built.named_parameters())
    for (name, value), other in zip(built.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(value, other), name
