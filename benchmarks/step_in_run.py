"""Training steps inside a `rondo run` against the same steps in a process of their own, without Ray, in turn.

    python -m benchmarks.step_in_run [--mode full|lora] [--rounds 3]

The pairs, model and settings are those of ``train_vs_trl``. Each round's run begins with a new store, so that all its
stages are there beside the training's process as they are in any run. The first step of each side is left out: in it
kernels are made and memory is mapped. Prints JSON; a ratio of 1 is no loss.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.pairs import LENGTHS, pair
from benchmarks.setup import child, model_folder, offline
from clusters.cpus import usable_cpus
from pipelines.run.store import ArtifactStore
from stages.io.filenames import METRICS


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=["full", "lora"], default="full")
    parser.add_argument("--lengths", choices=list(LENGTHS), default="realistic")
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--batch-size", type=int, default=16, help="pairs per optimizer step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path, help="folder in Hugging Face format; default: SmolLM2-135M-Instruct")
    return parser.parse_args()


def main() -> None:
    options = parse()
    model = model_folder(options.model).resolve()
    settings = {
        "mode": options.mode, "lengths": options.lengths, "pairs": options.pairs, "batch_size": options.batch_size,
        "precision": "bf16", "threads": usable_cpus(), "micro_batch_tokens": 2048, "model": str(model),
    }  # fmt: skip
    rates: dict[str, list[float]] = {"alone": [], "in a run": []}
    for number in range(options.rounds):
        found = child(sys.executable, "benchmarks.rondo_side", settings, {"OMP_NUM_THREADS": str(settings["threads"])})
        rates["alone"].append(rate(found["rows"]))
        with tempfile.TemporaryDirectory() as scratch:
            rates["in a run"].append(rate(run(settings, Path(scratch))))
        print(f"round {number + 1}: {rates}", file=sys.stderr, flush=True)
    ratios = [inside / alone for inside, alone in zip(rates["in a run"], rates["alone"], strict=True)]
    report = {
        **settings, "model": model.name, "tokens_per_second": rates,
        "ratio": round(statistics.median(ratios), 3), "ratio_each": [round(ratio, 3) for ratio in ratios],
    }  # fmt: skip
    print(json.dumps(report, indent=1))


def rate(rows: Sequence[Mapping[str, float]]) -> float:
    """Tokens a second of a training's steps but the first."""
    return round(sum(row["tokens"] for row in rows[1:]) / sum(row["seconds"] for row in rows[1:]), 1)


def run(settings: Mapping[str, Any], folder: Path) -> list[dict[str, float]]:
    """The metrics of the steps of a training in a run."""
    pairs = [pair(index, settings["lengths"]) for index in range(settings["pairs"])]
    (folder / "pairs.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in pairs), "utf-8")
    (folder / "spec.yaml").write_text(yaml.safe_dump(specification(settings)), "utf-8")
    program = [sys.executable, "-m", "pipelines", "run", str(folder / "spec.yaml"), "--store", str(folder / "store")]
    done = subprocess.run(program, env=offline({}), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"rondo run failed:\n{done.stderr[-2000:]}")
    store = ArtifactStore(str(folder / "store"))
    (manifest,) = (each for each in store.manifests() if each["payload"]["stage"] == "train")
    return [json.loads(line) for line in store.open(manifest).path(METRICS).read_text("utf-8").splitlines()]


def specification(settings: Mapping[str, Any]) -> dict[str, Any]:
    from benchmarks.rondo_side import configuration

    return {
        "name": "step-in-run", "policy": {"model": settings["model"]}, "preferences": ["pairs.jsonl"],
        "prepare": {"max_length": 2048}, "train": configuration(settings),
        "resources": {"train": {"micro_batch_tokens": settings["micro_batch_tokens"]}},
    }  # fmt: skip


if __name__ == "__main__":
    main()
