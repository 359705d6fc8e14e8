"""One ``rondo sweep`` against as many separate trainings by TRL's DPOTrainer.

    python -m benchmarks.sweep_vs_separate [--trials 8] [--pairs FILE] [--trl-python PYTHON] [--trl-runs 3]

Rondo sweeps with the scheduler none and again, in a new store, with asha. TRL trains the configurations that the first
sweep drew, one after another, each in a process of its own, on the same training pairs, and evaluates on the same
held-out pairs at the end, in two ways:

- ``inside``: the reference is computed in every training by turning the adapter off, as TRL does unless told otherwise.
- ``reused``: ``precompute_ref_log_probs``. TRL keeps the result in the cache of datasets, under a hash of the pairs and
  of the model with its fresh adapter, so that later trainings with the same seed and rank find it.

Tokenised pairs are reused from that cache in both ways. The pairs must not repeat: Rondo would drop the second ones.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.setup import ALLOCATOR, command, model_folder, offline, result, split
from benchmarks.watch import Watched, watch
from clusters.cpus import usable_cpus
from stages.train.config import TrainConfig

PAIRS = Path(__file__).parents[1] / "pipelines/recipes/sweep/pairs.jsonl"
SPACE = {
    "beta": {"loguniform": [0.01, 0.5]}, "learning_rate": {"loguniform": [1e-5, 5e-4]}, "batch_size": [8, 16],
}  # fmt: skip
TRAIN = {"loss": "sigmoid", "epochs": 1, "lora": {"rank": 8, "alpha": 32, "target_modules": ["q_proj", "v_proj"]}}
WAYS = {"inside": False, "reused": True}
"""TRL's ``precompute_ref_log_probs``."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--pairs", type=Path, default=PAIRS, help="a JSONL file of pairs; default: the sweep's recipe")
    parser.add_argument("--heldout", type=float, default=0.25, help="share of the prompts that is held out")
    parser.add_argument("--search", choices=["random", "tpe"], default="random")
    parser.add_argument("--model", type=Path, help="folder in Hugging Face format; default: SmolLM2-135M-Instruct")
    parser.add_argument("--threads", type=int, default=usable_cpus(), help="TRL's")
    parser.add_argument("--trl-python", default=sys.executable, help="an interpreter in which trl can be imported")
    parser.add_argument("--trl-runs", type=int, help="train only so many by TRL, and scale its time to all trials")
    options = parser.parse_args()
    options.trl_runs = min(options.trl_runs or options.trials, options.trials)
    if options.trials < 2 or options.trl_runs < 2:
        parser.error("at least 2 trials and 2 runs by TRL: the first one with a reused reference is unlike the others")
    return options


def main() -> None:
    options = parse()
    model = model_folder(options.model).resolve()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        records, sweeps = {}, {}
        for scheduler in ("none", "asha"):
            records[scheduler], watched = sweep(options, model, scheduler, scratch)
            sweeps[scheduler] = rondo(records[scheduler], watched)
            print(f"rondo, {scheduler}: {watched.seconds:.1f} s", file=sys.stderr, flush=True)
        trials = points(records["none"])
        runs = {way: separate(options, model, way, [point for point, _ in trials], scratch) for way in WAYS}
    sides = {way: trl(found, watched, len(trials)) for way, (found, watched) in runs.items()}
    report = {
        "trials": len(trials), "trl_runs": options.trl_runs, "trl_seconds_are_scaled": options.trl_runs < len(trials),
        "pairs": options.pairs.name, "heldout": options.heldout, "model": model.name, "threads": options.threads,
        "rondo": sweeps, "trl": sides, **compare(sweeps, sides),
        "each": each(trials, {way: found for way, (found, _) in runs.items()}),
    }  # fmt: skip
    print(json.dumps(report, indent=1))


def each(
    trials: Sequence[tuple[dict[str, Any], float]], runs: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """Every configuration with the held-out reward accuracy that each side reached, None where TRL did not train it."""
    rows = []
    for index, (point, score) in enumerate(trials):
        theirs = {
            way: found[index]["reward_accuracy"] if index < len(found) else None for way, found in runs.items()
        }  # fmt: skip
        rows.append({"point": point, "rondo": score, **theirs})
    return rows


def specification(options: argparse.Namespace, model: Path, scheduler: str) -> dict[str, Any]:
    return {
        "name": f"sweep-{scheduler}", "policy": {"model": str(model)}, "preferences": [str(options.pairs.resolve())],
        "data": {"heldout": options.heldout}, "train": TRAIN, "seed": 0,
        "sweep": {
            "space": SPACE, "search": options.search, "scheduler": scheduler, "trials": options.trials,
            "objective": "reward_accuracy",
        },
    }  # fmt: skip


def sweep(options: argparse.Namespace, model: Path, scheduler: str, scratch: Path) -> tuple[dict[str, Any], Watched]:
    """The record of a sweep in a new store."""
    spec = scratch / f"{scheduler}.yaml"
    spec.write_text(yaml.safe_dump(specification(options, model, scheduler)), "utf-8")
    store = scratch / f"store-{scheduler}"
    program = [sys.executable, "-m", "pipelines", "sweep", str(spec), "--store", str(store), "--json"]
    watched = watch(program, offline({}))
    if watched.done.returncode:
        raise SystemExit(f"rondo sweep failed:\n{watched.done.stderr[-2000:]}")
    record: dict[str, Any] = json.loads(watched.done.stdout)
    return record, watched


def points(record: Mapping[str, Any]) -> list[tuple[dict[str, Any], float]]:
    """The configurations of a sweep without a scheduler, each with its held-out reward accuracy."""
    if faulty := [f"{trial['number']}: {trial['status']}" for trial in record["trials"] if trial["status"] != "done"]:
        raise SystemExit(f"these trials were not trained to the end: {', '.join(faulty)}")
    return [(trial["point"], trial["scores"]["reward_accuracy"]) for trial in record["trials"]]


def configuration(point: Mapping[str, Any]) -> dict[str, Any]:
    """All of Rondo's settings of a training, by the names of the specification."""
    settings: dict[str, Any] = {**TRAIN, "lora": dict(TRAIN["lora"])}  # type: ignore[call-overload]
    for name, value in point.items():
        group, _, key = name.rpartition(".")
        (settings[group] if group else settings)[key] = value
    return TrainConfig.model_validate(settings).model_dump(mode="json")


def separate(
    options: argparse.Namespace, model: Path, way: str, drawn: Sequence[Mapping[str, Any]], scratch: Path
) -> tuple[list[dict[str, Any]], list[Watched]]:
    """TRL's trainings, one after another; the first ``trl_runs`` of the points drawn."""
    folder = scratch / f"trl-{way}"
    folder.mkdir()
    settings = {
        **split(options.pairs, options.heldout, folder), "cache": str(folder / "cache"), "precompute": WAYS[way],
        "model": str(model), "threads": options.threads,
    }  # fmt: skip
    environment = offline({"GLIBC_TUNABLES": ALLOCATOR, "OMP_NUM_THREADS": str(options.threads)})
    module, runs, watched = "benchmarks.sweep_trl_side", [], []
    for number, point in enumerate(drawn[: options.trl_runs]):
        asked = {**settings, "train_config": configuration(point), "scratch": str(folder / str(number))}
        watched.append(watch(command(options.trl_python, module, asked), environment))
        runs.append(result(module, watched[-1].done))
        print(f"trl, {way}, {number + 1}: {watched[-1].seconds:.1f} s", file=sys.stderr, flush=True)
    return runs, watched


def rondo(record: Mapping[str, Any], watched: Watched) -> dict[str, Any]:
    trials = record["trials"]
    return {
        "seconds": round(watched.seconds, 1), **memory([watched]),
        "statuses": [trial["status"] for trial in trials],
        "trained_share": round(sum(trial["share"] for trial in trials) / len(trials), 3),
        "best_reward_accuracy": max(t["scores"]["reward_accuracy"] for t in trials if t["scores"]),
    }  # fmt: skip


def trl(runs: Sequence[Mapping[str, Any]], watched: Sequence[Watched], trials: int) -> dict[str, Any]:
    seconds = [run.seconds for run in watched]
    return {
        "seconds": round(scaled(seconds, trials), 1), "seconds_each": [round(value, 1) for value in seconds],
        "prepare_seconds_each": [round(run["prepare_seconds"], 1) for run in runs],
        "train_seconds_each": [round(run["train_seconds"], 1) for run in runs],
        **memory(watched), "best_reward_accuracy": max(run["reward_accuracy"] for run in runs),
    }  # fmt: skip


def scaled(seconds: Sequence[float], trials: int) -> float:
    """The sum if there were as many runs as trials. The first run stands for itself alone: it fills the caches."""
    first, *later = seconds
    return first + sum(later) * (trials - 1) / len(later)


def memory(watched: Sequence[Watched]) -> dict[str, float]:
    return {
        "peak_memory_gib": round(max(each.peak.resident for each in watched), 2),
        "peak_private_memory_gib": round(max(each.peak.private for each in watched), 2),
    }


def compare(sweeps: Mapping[str, Mapping[str, Any]], sides: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """TRL's seconds over Rondo's, and Rondo's memory over TRL's."""
    both = [(scheduler, way) for scheduler in sweeps for way in sides]

    def ratios(name: str, upside_down: bool = False) -> dict[str, float]:
        found = {f"{s}_{w}": sides[w][name] / sweeps[s][name] for s, w in both}
        return {key: round(1 / value if upside_down else value, 2) for key, value in found.items()}

    return {
        "speed_ratios": ratios("seconds"),
        "memory_ratios": ratios("peak_memory_gib", upside_down=True),
        "private_memory_ratios": ratios("peak_private_memory_gib", upside_down=True),
    }


if __name__ == "__main__":
    main()
