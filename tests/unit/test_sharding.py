"""A model in shares gives the bits that the whole model gives: a group of one worker goes through all that several do
but for the network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

from stages.core.forward.logprobs import ResponseLogprobs
from stages.core.forward.packing import collate
from stages.train import sharding
from stages.train.policy import without_dropout
from tests import zoo
from tests.memory import random_pairs

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    file = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def gradients(model: Any, whole: bool) -> dict[str, torch.Tensor]:
    """By name, after two micro-batches."""
    if not whole:
        model.keeps_head = False
        sharding._shard(model, CPU, 1, offload=False)
    slopes = torch.tensor([-0.5, 0.25])
    for pairs in (random_pairs(4)[:2], random_pairs(4)[2:]):
        batch = collate(pairs, model.layout)
        handle = model(batch, lambda first, last, *_: slopes.repeat(last - first)).handle
        handle.backward()
    found = {}
    for name, parameter in model.named_parameters():
        grad: Any = parameter.grad
        assert grad is not None, name
        found[name] = grad if whole else grad.full_tensor()
    return found


def both(family: str, layout: Any, checkpointing: bool) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The gradients of a whole model and of the same in shares."""

    def made() -> Any:
        return without_dropout(ResponseLogprobs(zoo.model(family), layout, "bf16", checkpointing))

    return gradients(made(), whole=True), gradients(made(), whole=False)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("layout", ["shared", "padded"])
@pytest.mark.parametrize("family", [*zoo.LLAMA_LIKE, *zoo.OWN_LAYERS])
def test_gradients_are_those_of_the_whole_model(family: str, layout: Any, checkpointing: bool) -> None:
    whole, shares = both(family, layout, checkpointing)
    assert whole.keys() == shares.keys()
    for name, expected in whole.items():
        assert torch.equal(shares[name], expected), name


@pytest.mark.parametrize("family", zoo.PADDED)
def test_other_families_are_gathered_as_they_are(family: str) -> None:
    model = ResponseLogprobs(zoo.model(family), "padded", "bf16")
    assert not any(sharding._rounded(model, layer) for layer in sharding._layers(model))
    whole, shares = both(family, "padded", checkpointing=False)
    assert all(torch.equal(shares[name], expected) for name, expected in whole.items())


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "mixtral"])
def test_products_of_trained_weights_are_gathered_in_bfloat16(family: str) -> None:
    model = ResponseLogprobs(zoo.model(family), "padded", "bf16")
    layer = next(sharding._layers(model))
    linear = {module for module in layer.modules() if isinstance(module, torch.nn.Linear)}
    assert linear
    assert set(sharding._rounded(model, layer)) == linear
    assert not sharding._rounded(ResponseLogprobs(model.model, "padded", "fp32"), layer)
    next(layer.parameters()).requires_grad_(False)
    assert not sharding._rounded(model, layer)


def test_no_copy_of_a_weight_is_kept_for_the_backward_pass() -> None:
    """Whole weights in bfloat16 of all layers, on every worker, are what shares are to save."""
    model: Any = without_dropout(ResponseLogprobs(zoo.model("gemma2"), "shared", "bf16"))
    model.keeps_head = False
    sharding._shard(model, CPU, 1, offload=False)
    shapes = {tuple(m.weight.shape) for layer in sharding._layers(model) for m in sharding._rounded(model, layer)}
    assert isinstance(model, FSDPModule)
    kept: list[tuple[int, ...]] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.bfloat16 and tuple(tensor.shape) in shapes and not tensor.is_leaf:
            kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(collate(random_pairs(2), "shared"), lambda first, last, *_: torch.ones(2 * (last - first)))
    assert not kept
