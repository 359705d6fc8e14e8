"""What a pipeline takes beyond its essential work, stage by stage.

    python -m benchmarks.overhead [--spec quickstart] [--store FOLDER]

Runs the spec and then, each in a process of its own and without Ray, the essential work of the first step of each
stage again: the engine on a rollout's first prompts, a training's loop for its first steps, the forward passes of a
reference. What all steps would take at these rates (per token, optimizer step and pair) is essential; everything else
is rest: starting processes and engines, imports, loading and writing models, and every stage that computes nothing
with a model. Prints JSON.

A store that a run has filled can be given: then nothing is run, and the wall time is the sum of the steps' seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from clusters.cpus import usable_cpus
from pipelines.run.store import ArtifactStore

UNITS = {"rollout": "tokens", "train": "steps", "reference": "pairs"}
"""What of a stage's summary its essential work grows with."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", default="quickstart")
    parser.add_argument("--store", type=Path, help="a filled store, instead of a run in a new one")
    return parser.parse_args()


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as name:
        store = options.store or Path(name) / "store"
        wall = None if options.store else run(options.spec, store)
        print(json.dumps(report(ArtifactStore(str(store)), wall), indent=1))


def run(spec: str, store: Path) -> float:
    """Seconds of a whole ``rondo run``."""
    started = time.monotonic()
    program = [str(Path(sys.executable).parent / "rondo"), "run", spec, "--store", str(store), "--json"]
    subprocess.run(program, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def report(store: ArtifactStore, wall: float | None) -> dict[str, Any]:
    """Wall time, essential work and the rest of every step, and the share that is essential."""
    if not store.manifests():
        raise SystemExit(f"{store.location} holds no artifact; give the store of a run, or leave --store out")
    made = sorted(store.manifests(), key=lambda manifest: str(manifest["committed"]))
    first = {manifest["payload"]["stage"]: manifest for manifest in reversed(made)}
    rates = {stage: rate(store, first[stage]) for stage in UNITS if stage in first}
    steps = [step(manifest, rates) for manifest in made]
    total, essential = sum(s["wall"] for s in steps), sum(s["essential"] for s in steps)
    wall = total if wall is None else wall
    stages: dict[str, dict[str, float]] = {}
    for each in steps:
        sums = stages.setdefault(each["stage"], {"wall": 0.0, "essential": 0.0, "rest": 0.0})
        for name in sums:
            sums[name] = round(sums[name] + each[name], 1)
    outside = round(wall - total, 1)
    return {"steps": steps, "stages": stages, "outside_steps": outside, "wall": round(wall, 1),
            "essential": round(essential, 1), "ratio": round(essential / wall, 3)}  # fmt: skip


def rate(store: ArtifactStore, manifest: dict[str, Any]) -> float:
    """Seconds per unit of a step's essential work."""
    stage, cpus = manifest["payload"]["stage"], usable_cpus()
    inputs = manifest["payload"]["inputs"]
    task = {"stage": stage, "config": manifest["payload"]["config"], "inputs": inputs, "cpus": cpus,
            "store": store.store.location}  # fmt: skip
    return measure(task)


def step(manifest: dict[str, Any], rates: dict[str, float]) -> dict[str, Any]:
    stage, wall = manifest["payload"]["stage"], manifest["seconds"]
    essential = rates[stage] * manifest["summary"][UNITS[stage]] if stage in rates else 0.0
    return {"key": manifest["key"], "stage": stage, "wall": wall, "essential": round(essential, 2),
            "rest": round(wall - essential, 2)}  # fmt: skip


def measure(task: dict[str, Any]) -> float:
    """Seconds per unit, measured in a fresh process (``benchmarks/essential_side.py``)."""
    program = [sys.executable, "-m", "benchmarks.essential_side", json.dumps(task)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(task["cpus"])}
    done = subprocess.run(program, capture_output=True, text=True, check=False, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(f"{task['stage']} could not be measured:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return float(json.loads(lines[-1].removeprefix("RESULT ")))


if __name__ == "__main__":
    main()
