"""Time and memory of preparing data as it grows: from a JSONL file to shards, through the real steps on a local Ray.

    python -m benchmarks.prepare_scale --rows 10000 100000 1000000

Prints JSON: for every size the seconds of each step, rows per second, and the peak of the memory that the process and
its children hold for themselves (unique set size, with Ray's shared object store), less what it was before the first
step; and the ratios of the last size to the first.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.pairs import WORDS
from benchmarks.setup import model_folder
from clusters import local
from pipelines.plan import rounds
from pipelines.run.console import Lines
from pipelines.run.runner import Runner
from pipelines.run.store import ArtifactStore
from pipelines.spec import load


def write(path: Path, rows: int) -> None:
    """Short distinct pairs."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            first, second, third = (WORDS[(number // len(WORDS) ** power) % len(WORDS)] for power in range(3))
            row = {
                "prompt": f"Tell me about the {first} and the {second} of {third}, number {number}.",
                "chosen": f"The {first} is old, the {second} is new, and {third} is far away.",
                "rejected": f"I know nothing of {second} or {first}.",
            }
            file.write(json.dumps(row) + "\n")


def held() -> int:
    """Bytes that this process and its children hold for themselves; Ray's object store counts as its daemon's."""
    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            memory = process.memory_full_info()
            shared = memory.shared if process.name() == "raylet" else 0
            total += memory.uss + shared
        except psutil.Error:
            continue
    return total


@contextmanager
def watching() -> Iterator[list[int]]:
    """Memory held, measured twice a second while the block runs."""
    seen, over = [held()], threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            seen.append(held())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def measure(rows: int, model: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "pairs.jsonl", rows)
        spec = {"name": "scale", "policy": {"model": str(model)}, "preferences": ["pairs.jsonl"]}
        (folder / "spec.json").write_text(json.dumps(spec))  # JSON is YAML
        loaded = load.load(str(folder / "spec.json"))
        plan = rounds.plan(loaded.spec, folder)
        wanted = ("materialise", "ingest", "curate", "encode", "prepare")
        steps = [step for step in plan.steps if step.stage.name in wanted]
        local.start(local.load())
        runner = Runner(ArtifactStore(str(folder / "store")), _Quiet(), lambda: None)
        before = held()
        with watching() as seen:
            started = time.perf_counter()
            runner.run(steps)
            seconds = time.perf_counter() - started
        local.stop()
        return {
            "rows": rows,
            "seconds": {result.step.stage.name: result.seconds for result in runner.results},
            "rows_per_second": round(rows / seconds, 1),
            "peak_mib": round(max(seen) / 2**20),
            "growth_mib": round((max(seen) - before) / 2**20),
        }


class _Quiet(Lines):
    def __init__(self) -> None:
        from rich.console import Console

        super().__init__(Console(quiet=True), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--model", type=Path, help="folder in Hugging Face format; default: SmolLM2-135M-Instruct")
    options = parser.parse_args()
    model = model_folder(options.model)
    found = [measure(rows, model) for rows in options.rows]
    ratios = {
        "memory": round(found[-1]["peak_mib"] / found[0]["peak_mib"], 2),
        "rows_per_second": round(found[-1]["rows_per_second"] / found[0]["rows_per_second"], 2),
    }
    print(json.dumps({"sizes": found, "last_to_first": ratios}, indent=1))


if __name__ == "__main__":
    main()
