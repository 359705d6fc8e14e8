"""How fast the machine could train: its matrix products against the operations that a pair needs.

    python -m benchmarks.limit --model FOLDER [--lengths realistic|long] [--achieved full=1.2 lora=2.0]

Only what is needed is counted: the prompt once a pair, the head on response tokens, causal attention without its
masked half, a backward pass of twice the forward (once where the weights are frozen; attention always twice).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Shape:
    """What of a model decides about its operations."""

    width: int
    inner: int
    layers: int
    vocabulary: int
    query: int
    key: int

    @classmethod
    def of(cls, config: Any) -> Shape:
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.vocab_size,
            config.num_attention_heads * dim, config.num_key_value_heads * dim,
        )  # fmt: skip

    @property
    def body(self) -> int:
        """Weights in the layers' products."""
        return self.layers * (2 * self.width * (self.query + self.key) + 3 * self.width * self.inner)

    @property
    def head(self) -> int:
        return self.width * self.vocabulary

    @property
    def products(self) -> dict[str, tuple[int, int]]:
        """The layers' products by name: outputs and inputs."""
        return {
            "query": (self.query, self.width), "key": (self.key, self.width),
            "gate": (self.inner, self.width), "down": (self.width, self.inner), "head": (self.vocabulary, self.width),
        }  # fmt: skip


def operations(shape: Shape, prompt: int, chosen: int, rejected: int, frozen: bool) -> float:
    """Floating-point operations (a multiply-add is two) of one pair's forward and backward pass."""
    tokens, answers = prompt + chosen + rejected, chosen + rejected
    seen = tokens * (tokens + 1) / 2 - chosen * rejected  # query-key pairs: the branches do not see each other
    products = 2 * (shape.body * tokens + shape.head * answers)
    attention = 4 * shape.query * shape.layers * seen
    return products * (2 if frozen else 3) + attention * 3


def peak(shape: Shape, dtype: torch.dtype, rows: int = 2048, seconds: float = 0.5) -> float:
    """The best median rate, in operations a second, over the model's own products and a large square one."""
    sizes = [(rows, *size) for size in shape.products.values()] + [(2048, 2048, 2048)]
    return max(_rate(*size, dtype, seconds) for size in sizes)


def _rate(rows: int, outputs: int, inputs: int, dtype: torch.dtype, seconds: float) -> float:
    x, w, g = (torch.randn(*size).to(dtype) for size in ((rows, inputs), (outputs, inputs), (rows, outputs)))
    directions: Sequence[Callable[[], torch.Tensor]] = (lambda: x @ w.t(), lambda: g @ w, lambda: g.t() @ x)
    return 2 * rows * outputs * inputs / min(_median(call, seconds) for call in directions)


def _median(call: Callable[[], torch.Tensor], seconds: float) -> float:
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def ideal(shape: Shape, lengths: Sequence[tuple[int, int, int]], rate: float) -> dict[str, float]:
    """Pairs a second by mode, were every needed operation done at ``rate`` and nothing else."""
    return {
        mode: rate * len(lengths) / sum(operations(shape, *each, frozen=mode == "lora") for each in lengths)
        for mode in ("full", "lora")
    }


def main() -> None:
    from transformers import AutoConfig

    from benchmarks.setup import encoded, model_folder

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder in Hugging Face format; default: SmolLM2-135M-Instruct")
    parser.add_argument("--lengths", choices=["realistic", "long"], default="realistic")
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--achieved", nargs="*", default=[], metavar="MODE=PAIRS_A_SECOND")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = model_folder(options.model)
    shape = Shape.of(AutoConfig.from_pretrained(folder))
    pairs = encoded(folder, options.lengths, options.pairs)
    lengths = [(len(p.prompt_ids), len(p.chosen_ids), len(p.rejected_ids)) for p in pairs]
    rates = {name: peak(shape, dtype) for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32))}
    limits = ideal(shape, lengths, rates["bf16"])
    achieved = {mode: float(value) for mode, value in (item.split("=") for item in options.achieved)}
    result = {
        "threads": options.threads,
        "peak_gflops": {name: round(rate / 1e9, 1) for name, rate in rates.items()},
        "ideal_pairs_per_second_bf16": {mode: round(value, 3) for mode, value in limits.items()},
        "share_reached": {mode: round(value / limits[mode], 3) for mode, value in achieved.items()},
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
