"""The small parts that every stage is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from stages.base import Config, Resources, RolloutResources, TrainResources, resolve
from stages.generate.config import RolloutConfig
from stages.io.artifact import UserFile, grouped
from stages.train.config import LoraConfig, TrainConfig


class Inner(Config):
    size: int = 1
    names: tuple[str, ...] = ()


class Outer(Config):
    kind: str
    inner: Inner = Inner()
    other: Inner | None = None


def test_the_identity_holds_what_differs_from_the_defaults() -> None:
    assert Outer(kind="a").identity() == {"kind": "a"}
    assert Outer(kind="a", inner=Inner(size=2)).identity() == {"kind": "a", "inner": {"size": 2}}
    assert Outer(kind="a", inner=Inner(size=1)).identity() == {"kind": "a"}
    assert Outer(kind="a", other=Inner()).identity() == {"kind": "a", "other": {}}
    assert Outer(kind="a", inner=Inner(names=("x",))).identity() == {"kind": "a", "inner": {"names": ["x"]}}


def test_a_configuration_cannot_be_changed() -> None:
    config = TrainConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.beta = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (TrainConfig, {"beta": -1}),
        (TrainConfig, {"beta": float("nan")}),
        (TrainConfig, {"learning_rate": float("inf")}),
        (TrainConfig, {"betta": 1}),
        (TrainConfig, {"warmup": 1.01}),
        (LoraConfig, {"rank": 0}),
        (LoraConfig, {"dropout": -0.1}),
        (RolloutConfig, {"top_p": 1.1}),
        (RolloutConfig, {"temperature": -1}),
        (Resources, {"workers": 0}),
        (Resources, {"gpus": -1}),
        (TrainResources, {"micro_batch_tokens": 0}),
        (TrainResources, {"workers": [3, 1]}),
        (TrainResources, {"strategy": "zero"}),
    ],
)
def test_values_out_of_range_are_refused(model: type[Config], values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(values)
    assert caught.value.errors()[0]["loc"] == tuple(values)


def test_resolve_imports_what_is_named() -> None:
    assert resolve("pathlib:Path") is Path


@pytest.mark.parametrize("reference", ["pathlib", "pathlib:", ":Path", "", "pathlib:Path.home", "pathlib:a b"])
def test_resolve_refuses_other_forms(reference: str) -> None:
    with pytest.raises(ValueError, match='expected "module:name"'):
        resolve(reference)


@pytest.mark.parametrize(("reference", "part"), [("no_such_module:x", "no_such_module"), ("pathlib:Nope", "'Nope'")])
def test_resolve_says_what_is_not_there(reference: str, part: str) -> None:
    with pytest.raises(ImportError, match=part):
        resolve(reference)


def test_grouped_inputs_come_in_the_order_of_their_numbers() -> None:
    numbers = [10, 2, 0, 1]
    inputs = {f"files.{n}": UserFile(f"/{n}", str(n)) for n in numbers} | {"policy": UserFile("/p", "p")}
    assert [file.name for file in grouped(inputs, "files")] == ["0", "1", "2", "10"]
    assert [file.name for file in grouped(inputs, "policy")] == ["p"]
    assert grouped(inputs, "replay") == []


def test_an_engine_over_several_gpus_is_given_as_many() -> None:
    assert RolloutResources(workers=2, tensor_parallel=4).gpus == 4
    assert RolloutResources(tensor_parallel=4, gpus=4).gpus == 4
    assert RolloutResources(gpus=0.5).gpus == 0.5
    assert RolloutResources().gpus == 0
    with pytest.raises(ValidationError, match="an engine uses tensor_parallel GPUs, here 4, got gpus 2"):
        RolloutResources(tensor_parallel=4, gpus=2)
    with pytest.raises(ValidationError, match="here 4, got gpus 1"):
        RolloutResources(tensor_parallel=4, gpus=1)
    with pytest.raises(ValidationError, match="here 1, got gpus 2"):
        RolloutResources(gpus=2)
    for number in ("2", 2.0, True, 0):
        with pytest.raises(ValidationError, match="tensor_parallel"):
            RolloutResources.model_validate({"tensor_parallel": number})


@pytest.mark.parametrize("gpus", [1.5, 0.00001, 2.0001])
def test_parts_of_gpus_that_ray_does_not_count_are_refused(gpus: float) -> None:
    with pytest.raises(ValidationError, match="expected whole GPUs, or a part of one with at most 4 decimals"):
        Resources(gpus=gpus)


@pytest.mark.parametrize(
    "condition", ["!", "!!a", "in(a", "a)", "in(a,,b)", "in()", "in( a)", "-a", "IN(a)", "a b", ""]
)
def test_what_is_no_condition_on_a_label_is_refused(condition: str) -> None:
    with pytest.raises(ValidationError, match="is no condition on a label"):
        Resources(label_selector={"zone": condition})


@pytest.mark.parametrize("condition", ["a", "!a", "in(a)", "in(a,b)", "!in(a, b-2.c)"])
def test_conditions_on_labels(condition: str) -> None:
    assert Resources(label_selector={"ray.io/node-group": condition}).label_selector


def test_ray_is_asked_for_what_is_given_and_nothing_else() -> None:
    assert Resources().options(3) == {"num_cpus": 3, "num_gpus": 0}
    asked = Resources(gpus=1, memory_gib=1.5, accelerator_type="H100", label_selector={"zone": "!a"}).options(2)
    assert asked == {"num_cpus": 2, "num_gpus": 1, "memory": 3 << 29, "accelerator_type": "H100",
                     "label_selector": {"zone": "!a"}}  # fmt: skip
