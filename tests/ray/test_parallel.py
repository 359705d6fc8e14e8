"""Two worker processes on gloo, without Ray: strategies, adapters and checkpoints against a single worker."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from stages.train import save_shares
from tests import tiny, zoo
from tests.ray.two_workers import CASES, HALF, Case, train

Rows = list[dict[str, float]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all cases have run, each a training of two workers."""
    folder = tmp_path_factory.mktemp("two")
    tiny.save(folder / "policy" / "model")
    zoo.of_family("mixtral").save_pretrained(folder / "mixture" / "model")
    zoo.model("gemma2").save_pretrained(folder / "gemma2" / "model")
    for case in CASES.values():
        if case.start.endswith("-one") and not (folder / case.start).exists():
            train(Case(case.adapter, stop=True), folder, case.start, tokens=1000)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, "-W", "error", "-m", "tests.ray.two_workers"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [*command, str(rank), str(port), str(folder)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        outputs = [worker.communicate(timeout=400)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(outputs)
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path) -> Callable[[Case], tuple[Rows, Path]]:
    """The rows of metrics of one worker in one micro-batch a step, and where its policy is."""

    @lru_cache(None)
    def trained(adapter: str, settings: str, base: str) -> tuple[Rows, Path]:
        name = f"alone-{adapter}-{len(list(folder.iterdir()))}"
        case = Case(adapter, settings=json.loads(settings), base=base)
        return train(case, folder, name, tokens=10_000), folder / name

    return lambda case: trained(case.adapter, json.dumps(case.settings), case.base)


def rows(folder: Path, name: str) -> Rows:
    found: Rows = json.loads((folder / f"{name}.json").read_text())
    return found


def weights(folder: Path) -> dict[str, Any]:
    files = {path.name: load_file(path) for path in folder.glob("*/*.safetensors")}
    assert files
    return {f"{file}:{name}": tensor for file, tensors in files.items() for name, tensor in tensors.items()}


def close(first: Path, second: Path) -> bool:
    a, b = weights(first), weights(second)
    return a.keys() == b.keys() and all((a[name] - b[name]).abs().max() < 1e-4 for name in a)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.config.precision == "fp32"])
def test_two_workers_train_as_one(folder: Path, alone: Callable[[Case], tuple[Rows, Path]], name: str) -> None:
    """Whatever the strategy, the adapter and the loss, with and without activation checkpointing, also when it goes
    on from a checkpoint of the other strategy or of another number of workers."""
    expected, policy = alone(CASES[name])
    found = rows(folder, name)
    assert [row["step"] for row in found] == list(range(1, (HALF if CASES[name].stop else len(expected)) + 1))
    for column in ("loss", "grad_norm", "reward_margin", "kl", "pairs", "tokens"):
        near = {"rel": 1e-4, "abs": 1e-4 if column in ("reward_margin", "kl") else 0}
        assert [row[column] for row in found] == pytest.approx([row[column] for row in expected][: len(found)], **near)
    if not CASES[name].stop:
        assert close(policy, folder / name)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.config.precision == "bf16"])
def test_in_bf16_the_first_loss_is_ln_2_and_the_rest_is_near(
    folder: Path, alone: Callable[[Case], tuple[Rows, Path]], name: str
) -> None:
    found = rows(folder, name)
    assert found[0]["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in alone(CASES[name])[0]], rel=0.05)


@pytest.mark.parametrize("adapter", ["full", "lora", "ia3"])
def test_one_worker_goes_on_from_two_that_shared_the_weights_out(
    folder: Path, alone: Callable[[Case], tuple[Rows, Path]], adapter: str
) -> None:
    expected, policy = alone(Case(adapter))
    name = f"{adapter}-one-from-fsdp"
    found = train(Case(adapter, start=f"{adapter}-half"), folder, name, tokens=100)
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in expected], rel=1e-4)
    assert close(policy, folder / name)


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_sharing_workers_go_on_bit_for_bit(folder: Path, adapter: str) -> None:
    unbroken, continued = (rows(folder, name) for name in (adapter, f"{adapter}-from-fsdp"))
    assert [row["loss"] for row in unbroken] == [row["loss"] for row in continued]
    a, b = weights(folder / adapter), weights(folder / f"{adapter}-from-fsdp")
    assert all(a[name].equal(b[name]) for name in a)


@pytest.mark.parametrize("name", ["full", "lora", "ia3"])
def test_shares_in_main_memory_are_trained_to_the_same_bits(folder: Path, name: str) -> None:
    """On CPUs, where a share is there anyway: it is torch's own way for offloaded shares that is gone here."""
    kept, offloaded = (rows(folder, case) for case in (name, f"{name}-offload"))
    assert [row["loss"] for row in kept] == [row["loss"] for row in offloaded]
    a, b = weights(folder / name), weights(folder / f"{name}-offload")
    assert a.keys() == b.keys()
    assert all(a[key].equal(b[key]) for key in a)


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_each_worker_writes_its_share_and_nothing_is_pickled(folder: Path, adapter: str) -> None:
    shared, whole = folder / f"{adapter}-half", folder / f"{adapter}-half-ddp"
    assert {path.suffix for path in shared.iterdir()} == {".safetensors", ".json", ".jsonl"}
    sizes = [sum(tensor.nbytes for tensor in load_file(path).values()) for path in shared.glob("*.safetensors")]
    total = sum(tensor.nbytes for tensor in load_file(whole / "state.safetensors").values())
    assert sum(sizes) == total
    assert max(sizes) < 0.6 * total


@pytest.mark.parametrize("name", ["full", "lora", "full-mixture", "lora-mixture"])
def test_no_worker_had_all_of_what_was_saved(folder: Path, name: str) -> None:
    assert (folder / name / save_shares.HASHES).is_file()
    assert not (folder / "dora" / save_shares.HASHES).is_file()
