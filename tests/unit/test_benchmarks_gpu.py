"""The measurement for a GPU, on a CPU: what it does there with a tiny model, and its arithmetic."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_rondo
from benchmarks.gpu import Configuration, Report
from benchmarks.gpu_setup import LENGTHS, SIZES, compiled, listed_peak, needed, random_model, random_pairs, tokens_of
from benchmarks.gpu_trl import micro_batch, row, words
from stages.core.tokens.pair import EncodedPair
from stages.train.batching import batch_indices

ROOT = Path(__file__).parents[2]
PAIR = EncodedPair("0", [3, 1, 2], [5, 4, 0], [7, 0])


def test_a_tiny_model_is_measured_in_every_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu.json"
    gpu.main([
        "--size", "tiny", "--without-trl", "--layouts", "shared", "packed", "padded", "--lengths", "long", "--steps",
        "1", "--passes", "1", "--out", str(out),
    ])  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(out.read_text())
    assert not found["left_out"]
    assert [(run["mode"], run["layout"]) for run in found["runs"]] == [
        (mode, layout) for mode in ("full", "lora") for layout in ("shared", "packed", "padded")
    ]
    for run in found["runs"]:
        assert run["pairs_per_second"] > 0
        assert run["tokens_per_second"] > 0
        assert run["mfu"]["measured"] > 0
        assert run["first_loss_from_log_2"] == pytest.approx(0, abs=1e-6)
    checks = found["checks"]
    assert checks["largest_difference"] < 1e-5
    assert checks["cpu_losses"][2] < checks["cpu_losses"][0] - 0.01
    for each in checks["layouts"].values():
        assert each["from_log_2"] == pytest.approx({"fp32": 0, "bf16": 0}, abs=1e-6)
    assert found["compiled_after_warm_up"] == 0
    assert {(each["layout"], each["over"]) for each in found["ratios"]} == {("shared", "padded"), ("packed", "padded")}


def test_neither_ray_nor_vllm_is_imported() -> None:
    program = "import sys; sys.modules['ray'] = sys.modules['vllm'] = None; import benchmarks.gpu, benchmarks.trl_side"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def report(budget: float = 100.0, **more: Any) -> Report:
    found = {"runs": [], "left_out": [], "device": {"bf16_tflops": {"listed": 2.0, "measured": None}}}
    return Report(time.monotonic(), budget, 0.0, None, found, **more)


def figures(pairs: float, memory: float | None = None) -> dict[str, Any]:
    return {"pairs_per_second": pairs, "needed_tflops": 0.5, "peak_memory_gib": memory}


def test_what_fails_is_named_and_the_rest_is_measured() -> None:
    def fails() -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory\nand much more")

    made = report()
    made.measure(Configuration("full", "long", "padded"), fails)
    made.measure(Configuration("full", "long", "shared"), lambda: figures(3))
    first, second = made.found["runs"]
    assert first["failed"] == "OutOfMemoryError: CUDA out of memory"
    assert second["mfu"] == {"listed": 0.25, "measured": None}


def test_what_does_not_fit_into_the_budget_is_left_out() -> None:
    made = report(budget=50.0, taken={"trl": 60.0, "shared": 1.0})
    made.measure(Configuration("full", "long", None), lambda: figures(1))
    made.measure(Configuration("full", "long", "shared"), lambda: figures(1))
    assert made.found["left_out"] == [{"side": "trl", "mode": "full", "lengths": "long"}]
    assert [run["side"] for run in made.found["runs"]] == ["rondo"]


def test_layouts_are_compared_with_trl_and_with_padding() -> None:
    made = report()
    for layout, values in {"shared": (6, 1.0), "padded": (3, 2.0), None: (2, 4.0)}.items():
        made.measure(Configuration("lora", "long", layout), lambda values=values: figures(*values))  # type: ignore[misc]
    found = {(each["layout"], each["over"]): (each["speed"], each["memory"]) for each in made.found["ratios"]}
    assert found == {("shared", "trl"): (3, 0.25), ("shared", "padded"): (2, 0.5), ("padded", "trl"): (1.5, 0.5)}


def test_compiling_after_the_warm_up_is_added_up() -> None:
    counts = {"frames": 1, "graphs": 2, "graph_breaks": 0}
    assert gpu.late([{"compiled_in_timed_steps": counts}, {"failed": "x"}, {"compiled_in_timed_steps": counts}]) == 6


def test_what_torch_compiles_is_counted() -> None:
    def double(x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return 2 * x

    function = torch.compile(double, backend="eager", dynamic=False)
    counts = []
    for length in (2, 2, 3):
        before = compiled()
        function(torch.ones(length))
        counts.append(gpu_rondo.difference(before, compiled()))
    first, again, longer = counts
    assert min(first["frames"], first["graphs"], first["graph_breaks"]) > 0
    assert again == {"frames": 0, "graphs": 0, "graph_breaks": 0}
    assert longer["graphs"] > 0


def test_every_pass_has_the_batches_of_the_first() -> None:
    pairs = random_pairs("long", 4, 100, 16)
    data = gpu_rondo.Repeated(pairs, 3, seed=0)
    seen = [pair for step in range(6) for pair in data.pairs(batch_indices(step, len(data), 2, 1, 0))]
    assert seen == pairs * 3


@pytest.mark.parametrize("lengths", LENGTHS)
def test_random_pairs_have_the_lengths_asked_for(lengths: str) -> None:
    pairs = random_pairs(lengths, 20, 1000)
    assert pairs == random_pairs(lengths, 40, 1000)[:20]
    for name, (_, _, low, high) in LENGTHS[lengths].items():
        ids = [getattr(pair, f"{name}_ids") for pair in pairs]
        assert all(low <= len(each) <= high + 1 for each in ids)
    assert {pair.chosen_ids[-1] for pair in pairs} == {pair.rejected_ids[-1] for pair in pairs} == {0}


def test_trl_reads_the_same_tokens() -> None:
    tokenizer, text = words(10), row(PAIR)
    assert tokenizer(text["prompt"])["input_ids"] == PAIR.prompt_ids
    assert tokenizer(text["prompt"] + text["chosen"])["input_ids"] == PAIR.prompt_ids + PAIR.chosen_ids
    assert tokenizer(text["prompt"] + text["rejected"])["input_ids"] == PAIR.prompt_ids + PAIR.rejected_ids
    assert text["chosen"].endswith(tokenizer.eos_token)
    assert (text["length"], tokens_of([PAIR])) == (6, 11)


def test_trl_takes_as_many_pairs_as_fit() -> None:
    assert [micro_batch([PAIR], 8, tokens) for tokens in (1, 12, 24, 95, 96, 10**6)] == [1, 1, 2, 4, 8, 8]


def test_a_device_is_found_by_its_name() -> None:
    names = ("NVIDIA H200", "NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA L4", "NVIDIA A100-SXM4-40GB", "x86")
    assert [listed_peak(name) for name in names] == [989, 989, 756, 121, 312, None]


def test_the_large_model_has_the_size_it_is_called_by() -> None:
    model = random_model(SIZES["1b"].model, torch.device("meta"))
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_235_814_400
    pair = EncodedPair("0", [1] * 10, [1], [1])
    products = 2 * (1_235_814_400 - 128_256 * 2048) * 12 + 2 * 128_256 * 2048 * 2
    assert needed(SIZES["1b"].model, [pair], "full") == pytest.approx(3 * products, rel=1e-3)
