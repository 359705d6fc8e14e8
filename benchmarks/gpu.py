"""What one GPU makes of Rondo's training step, and of TRL's: speed, memory, losses, and what is compiled on the way.

    python -m benchmarks.gpu [--quick] [--out FILE] [--budget SECONDS] [--size 1b|tiny]

A random Llama of 1.24 billion weights is made on the device and trained on random tokens in bfloat16, all weights or a
LoRA of rank 16, in the layouts asked for; nothing is downloaded, and neither Ray nor vLLM is imported. Every training
goes over the batches of a few optimizer steps again and again, and the first pass is not timed. TRL's DPOTrainer does
the same in a process of its own where TRL can be imported. Before that the losses of a small model are compared with
those of the CPU.

Prints JSON; what fails or does not fit into the budget is named there, and the rest is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_rondo
from benchmarks.gpu_rondo import Setting, rates, said
from benchmarks.gpu_setup import (
    LAYOUTS,
    LENGTHS,
    MODES,
    SIZES,
    Size,
    card,
    listed_peak,
    measured_peak,
    random_pairs,
    reset_peak,
    versions,
)  # fmt: skip
from benchmarks.gpu_trl import NoTrl, Trl
from stages.core.forward.packing import Layout

_CHECKED_STEPS = 3
_SETTINGS = (
    "size", "layouts", "modes", "lengths", "steps", "passes", "micro_batch_tokens", "trl_micro_batch", "budget"
)  # fmt: skip


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="all weights, realistic lengths and one timed pass, if not told otherwise"
    )
    parser.add_argument(
        "--budget", type=float, default=330.0, metavar="SECONDS",
        help="a configuration that is not expected to end before is left out (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--size", choices=SIZES, default="1b", help="tiny is for a CPU (default: %(default)s)")
    parser.add_argument(
        "--layouts", nargs="+", choices=LAYOUTS, default=["shared", "padded"], help="(default: shared padded)"
    )
    parser.add_argument("--modes", nargs="+", choices=MODES, help="(default: both)")
    parser.add_argument("--lengths", nargs="+", choices=LENGTHS, help="(default: both)")
    parser.add_argument(
        "--steps", type=int, default=2, help="optimizer steps of a pass, of other pairs each (default: %(default)s)"
    )
    parser.add_argument("--passes", type=int, help="passes that are timed (default: 3)")
    parser.add_argument(
        "--micro-batch-tokens", type=int, help="tokens of one forward pass on both sides (default: 16384)"
    )
    parser.add_argument("--trl-micro-batch", type=int, help="pairs of TRL's forward passes instead")
    parser.add_argument("--without-trl", action="store_true", help="Rondo's side alone")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the JSON, written after every configuration")
    options = parser.parse_args(arguments)
    size = SIZES[options.size]
    options.modes = options.modes or (["full"] if options.quick else list(MODES))
    options.lengths = options.lengths or (["realistic"] if options.quick else list(LENGTHS))
    options.passes = options.passes or (1 if options.quick else 3)
    options.micro_batch_tokens = options.micro_batch_tokens or size.micro_batch_tokens
    if options.size != "tiny" and not torch.cuda.is_available():
        parser.error(f"--size {options.size} is for a GPU, and torch sees none; --size tiny runs on a CPU")
    return options


@dataclass(frozen=True)
class Configuration:
    """One training that is measured. ``layout`` is None on TRL's side."""

    mode: str
    lengths: str
    layout: Layout | None

    @property
    def kind(self) -> str:
        """Those of a kind are expected to take about as long as each other."""
        return self.layout or "trl"

    @property
    def label(self) -> dict[str, Any]:
        side = {"side": "trl"} if self.layout is None else {"side": "rondo", "layout": self.layout}
        return {**side, "mode": self.mode, "lengths": self.lengths}


@dataclass
class Report:
    """What has been found out so far. ``save`` is called whenever there is more."""

    started: float
    budget: float
    expected: float
    out: Path | None
    found: dict[str, Any] = field(default_factory=dict)
    taken: dict[str, float] = field(default_factory=dict)
    """The longest time that a configuration of a kind took."""

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    @property
    def left(self) -> float:
        return self.budget - self.elapsed

    def measure(self, configuration: Configuration, call: Callable[[], dict[str, Any]]) -> None:
        """Note what a training comes to, why it failed, or that there was no time for it."""
        label, kind = configuration.label, configuration.kind
        if self.taken.get(kind, self.expected) > self.left:
            self.found["left_out"].append(label)
            return
        began = self.elapsed
        try:
            result = call()
        except Exception as error:  # out of memory, or whatever else: the others are still to be measured
            result = {"failed": str(error) if isinstance(error, NoTrl) else said(error)}
        seconds = self.elapsed - began
        self.taken[kind] = max(seconds, self.taken.get(kind, 0.0))
        self.found["runs"].append({**label, **result, "seconds": round(seconds, 1)})
        print(json.dumps(self.found["runs"][-1]), file=sys.stderr, flush=True)
        self.save()

    def save(self) -> None:
        shares(self.found["runs"], self.found["device"]["bf16_tflops"])
        self.found |= {"ratios": ratios(self.found["runs"]), "compiled_after_warm_up": late(self.found["runs"])}
        self.found["seconds"] = round(self.elapsed, 1)
        if self.out is not None:
            part = self.out.with_name(f"{self.out.name}.part")
            part.write_text(json.dumps(self.found, indent=1) + "\n", "utf-8")
            os.replace(part, self.out)


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """All that the options ask for."""
    size, device = SIZES[options.size], torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report = Report(time.monotonic(), options.budget, size.expected, options.out)
    trl = None if options.without_trl or find_spec("trl") is None else Trl()
    try:
        described = card(device)
        described["bf16_tflops"] = {
            "listed": listed_peak(described["name"]), "measured": round(measured_peak(size, device) / 1e12, 4),
        }  # fmt: skip
        report.found |= {
            "device": described, "versions": versions(),
            "settings": {**{name: getattr(options, name) for name in _SETTINGS}, "model": dict(size.model)},
            "trl": "left out" if options.without_trl else "not importable", "runs": [], "left_out": [],
        }  # fmt: skip
        report.found["checks"] = gpu_rondo.checks(size, device, LAYOUTS, _CHECKED_STEPS)
        report.save()
        if trl is not None:
            trl = _ready(trl, report)
        for configuration in configurations(options, trl is not None):
            task = _task(options, size, device, configuration)
            report.measure(configuration, partial(_run, configuration, task, size, trl, report))
            reset_peak(device)
    finally:
        if trl is not None:
            trl.end()
    return report.found


def _ready(trl: Trl, report: Report) -> Trl | None:
    """TRL's process when it has imported what it needs; None if it cannot."""
    try:
        report.found["trl"] = trl.answer(report.left)
    except NoTrl as error:
        trl.end()
        report.found["trl"] = str(error)
        return None
    return trl


def configurations(options: argparse.Namespace, with_trl: bool) -> Iterator[Configuration]:
    """Both sides of a comparison next to each other."""
    for mode in options.modes:
        for lengths in options.lengths:
            for layout in [*options.layouts, *([None] if with_trl else [])]:
                yield Configuration(mode, lengths, layout)


def _task(options: argparse.Namespace, size: Size, device: torch.device, what: Configuration) -> dict[str, Any]:
    return {
        "size": options.size, "mode": what.mode, "lengths": what.lengths, "steps": options.steps,
        "passes": options.passes, "batch_size": size.batch_sizes[what.lengths], "device": str(device),
        "micro_batch_tokens": options.micro_batch_tokens, "micro_batch": options.trl_micro_batch,
    }  # fmt: skip


def _run(what: Configuration, task: dict[str, Any], size: Size, trl: Trl | None, report: Report) -> dict[str, Any]:
    """A training on either side."""
    if what.layout is None:
        assert trl is not None
        found = trl.ask(task, report.left)
        pairs = random_pairs(what.lengths, task["steps"] * task["batch_size"], size.model["vocab_size"], size.shorter)
        return {**found, **rates(size, pairs, what.mode, found["seconds_per_pass"])}
    device = torch.device(task["device"])
    setting = Setting(what.mode, what.layout, device, task["batch_size"], task["micro_batch_tokens"])
    return gpu_rondo.measure(size, setting, what.lengths, task["steps"], task["passes"])


def shares(runs: Sequence[dict[str, Any]], peaks: Mapping[str, float | None]) -> None:
    """Add how much of the device's rate was used for needed operations: of the maker's figure and of the measured."""
    for run in (run for run in runs if "failed" not in run):
        run["mfu"] = {name: peak and round(run["needed_tflops"] / peak, 4) for name, peak in peaks.items()}


def ratios(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rondo's layouts against TRL and against padded rows: above 1 is faster, below 1 is less memory."""
    done = [run for run in runs if "failed" not in run]
    named = {(run["mode"], run["lengths"], run.get("layout", "trl")): run for run in done}
    found = []
    for (mode, lengths, layout), run in named.items():
        for other in ("trl", "padded"):
            base = named.get((mode, lengths, other))
            if layout != "trl" and layout != other and base is not None:
                memory = (run["peak_memory_gib"], base["peak_memory_gib"])
                found.append({
                    "mode": mode, "lengths": lengths, "layout": layout, "over": other,
                    "speed": round(run["pairs_per_second"] / base["pairs_per_second"], 3),
                    "memory": round(memory[0] / memory[1], 3) if all(memory) else None,
                })  # fmt: skip
    return found


def late(runs: Sequence[dict[str, Any]]) -> int:
    """Functions and graphs that were compiled, and breaks that were found, after the warm-up; to be 0."""
    return sum(sum(run.get("compiled_in_timed_steps", {}).values()) for run in runs)


def main(arguments: Sequence[str] | None = None) -> None:
    print(json.dumps(measured(parse(arguments)), indent=1))


if __name__ == "__main__":
    main()
