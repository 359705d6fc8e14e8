"""Rondo's training step against TRL's DPOTrainer: same pairs, model, precision and optimizer steps, in turn.

    python -m benchmarks.train_vs_trl --mode full|lora [--lengths realistic|long] [--rounds 3] [--agree]

Each run has its own process. The reference's log-probabilities are computed before the clock starts on both sides.
``--agree`` compares the losses of every step instead: float32, pairs in file order on both sides.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks import limit
from benchmarks.setup import ALLOCATOR, child, encoded, model_folder
from clusters.cpus import usable_cpus


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=["full", "lora"], default="full")
    parser.add_argument("--lengths", choices=["realistic", "long"], default="realistic")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--batch-size", type=int, default=16, help="pairs per optimizer step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--model", type=Path, help="folder in Hugging Face format; default: SmolLM2-135M-Instruct")
    parser.add_argument("--micro-batch-tokens", type=int, default=2048, help="Rondo's, as resources.train has it")
    parser.add_argument("--trl-micro-batch", type=int, default=2, help="TRL's pairs a forward pass")
    parser.add_argument("--trl-python", default=sys.executable, help="an interpreter in which trl can be imported")
    parser.add_argument("--agree", action="store_true", help="compare the losses of every step, in float32")
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.agree:
        options.precision, options.rounds = "fp32", 1
    folder = model_folder(options.model)
    settings = {
        **{name: getattr(options, name) for name in (
            "mode", "lengths", "precision", "pairs", "batch_size", "threads", "micro_batch_tokens", "trl_micro_batch"
        )},
        "model": str(folder),
        "trl_sampling": "sequential" if options.agree else "group_by_length",
    }  # fmt: skip
    runs: dict[str, list[dict[str, Any]]] = {"trl": [], "rondo": []}
    for number in range(options.rounds):
        for side, python in (("trl", options.trl_python), ("rondo", sys.executable)):
            environment = {"GLIBC_TUNABLES": ALLOCATOR, "OMP_NUM_THREADS": str(options.threads)}
            found = child(python, f"benchmarks.{side}_side", settings, environment)
            runs[side].append(found)
            print(f"round {number + 1}, {side}: {rate(found, settings)} pairs/s", file=sys.stderr, flush=True)
    result = {**settings, "model": folder.name, **compare(runs, settings)}
    result |= agreement(runs) if options.agree else share(folder, settings, runs)
    print(json.dumps(result, indent=1))


def rate(run: dict[str, Any], settings: dict[str, Any], skip: int = 0) -> float:
    """Pairs a second, without the first ``skip`` steps."""
    marks = run["marks"][skip:]
    pairs = settings["pairs"] - skip * settings["batch_size"]
    return round(float(pairs / (marks[-1] - marks[0])), 3)


def compare(runs: dict[str, list[dict[str, Any]]], settings: dict[str, Any]) -> dict[str, Any]:
    steady = 1 if len(runs["rondo"][0]["marks"]) > 2 else 0  # the first step also makes kernels and maps memory
    answers = runs["rondo"][0]["response_tokens"] / settings["pairs"]
    sides: dict[str, Any] = {}
    for side, found in runs.items():
        rates = [rate(run, settings) for run in found]
        sides[side] = {
            "pairs_per_second": statistics.median(rates),
            "pairs_per_second_each": rates,
            "pairs_per_second_steady": statistics.median(rate(run, settings, steady) for run in found),
            "response_tokens_per_second": round(statistics.median(rates) * answers, 1),
            "peak_memory_gib": round(statistics.median(run["peak_memory_gib"] for run in found), 2),
            "first_loss": found[0]["losses"][0],
            "last_loss": found[0]["losses"][-1],
            "reference_seconds": round(statistics.median(run["reference_seconds"] for run in found), 1),
        }
    ratios = [
        [
            rate(mine, settings, skip) / rate(theirs, settings, skip)
            for mine, theirs in zip(runs["rondo"], runs["trl"], strict=True)
        ]
        for skip in (0, steady)
    ]
    memory = sides["rondo"]["peak_memory_gib"] / sides["trl"]["peak_memory_gib"]
    return {
        **sides,
        "speed_ratio": round(statistics.median(ratios[0]), 2),
        "speed_ratio_each": [round(value, 2) for value in ratios[0]],
        "speed_ratio_steady": round(statistics.median(ratios[1]), 2),
        "memory_ratio": round(memory, 2),
    }


def agreement(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    mine, theirs = (runs[side][0]["losses"] for side in ("rondo", "trl"))
    differences = [abs(a - b) for a, b in zip(mine, theirs, strict=True)]
    return {"losses": {"rondo": mine, "trl": theirs}, "largest_difference": max(differences)}


def share(folder: Path, settings: dict[str, Any], runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """How much of what the machine's matrix products allow was reached."""
    import torch
    from transformers import AutoConfig

    torch.set_num_threads(settings["threads"])
    dtype = torch.bfloat16 if settings["precision"] == "bf16" else torch.float32
    shape = limit.Shape.of(AutoConfig.from_pretrained(folder))
    pairs = encoded(folder, settings["lengths"], settings["pairs"])
    lengths = [(len(p.prompt_ids), len(p.chosen_ids), len(p.rejected_ids)) for p in pairs]
    ideal = limit.ideal(shape, lengths, limit.peak(shape, dtype))[settings["mode"]]
    skip = 1 if len(runs["rondo"][0]["marks"]) > 2 else 0
    best = statistics.median(rate(run, settings, skip) for run in runs["rondo"])
    return {"limit_pairs_per_second": round(ideal, 3), "share_of_limit_steady": round(best / ideal, 3)}


if __name__ == "__main__":
    main()
