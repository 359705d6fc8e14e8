"""Time and memory of preparing data as it grows: from a JSONL file to shards, through the real steps on a local Ray.

    python -m benchmarks.prepare_scale --rows 10000 100000 1000000

Prints JSON: for every size, each in a process of its own, the seconds of each step, rows per second, and the peaks of
the memory of the driver, of the largest worker and of the rest of Ray with its object store; and the ratios of the last
size to the first. ``--report`` measures ``rondo data`` on the same file, which starts no Ray. Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.pairs import WORDS
from benchmarks.setup import model_folder
from clusters import local
from pipelines.commands import datareport
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


def memory(seen: dict[str, int]) -> None:
    """Raise the peaks in ``seen`` to what is held now, in bytes of memory (without mapped files, which the kernel takes
    back when it likes): by the driver (this process), by the largest of Ray's workers, and by the rest of Ray, with its
    object store."""
    now: Counter[str] = Counter()
    driver = psutil.Process()
    for process in [driver, *driver.children(recursive=True)]:
        try:
            own, shared = held(process.pid, "RssAnon"), held(process.pid, "RssShmem")
            if process == driver:
                now["driver"] = own
            elif "ray::" in (title := " ".join(process.cmdline())):
                now["worker"] = max(now["worker"], own)
            else:
                now["ray"] += own + (shared if "raylet" in title else 0)
        except (psutil.Error, OSError, StopIteration):
            continue  # gone meanwhile
    for name, size in now.items():
        seen[name] = max(seen.get(name, 0), size)


def held(process: int, kind: str) -> int:
    """Bytes of one kind that Linux says a process holds."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(kind)).split()[1]) << 10


@contextmanager
def watching() -> Iterator[dict[str, int]]:
    """Peaks of memory, measured five times a second while the block runs."""
    seen: dict[str, int] = {}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            memory(seen)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def measure(rows: int, model: Path, report: bool) -> dict[str, Any]:
    """One size, in this process: what an earlier one left in memory would count."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "pairs.jsonl", rows)
        spec = {"name": "scale", "policy": {"model": str(model)}, "preferences": ["pairs.jsonl"]}
        (folder / "spec.json").write_text(json.dumps(spec))  # JSON is YAML
        store = ArtifactStore(str(folder / "store"))
        if report:
            steps = datareport.plan(str(folder / "pairs.jsonl"), (), store).steps
        else:
            plan = rounds.plan(load.load(str(folder / "spec.json")).spec, folder)
            wanted = ("materialise", "ingest", "curate", "encode", "prepare")
            steps = [step for step in plan.steps if step.stage.name in wanted]
            local.start(local.default())
        runner = Runner(store, _Quiet(), lambda: None)
        with watching() as seen:
            started = time.perf_counter()
            runner.run(steps)
            seconds = time.perf_counter() - started
        return {
            "rows": rows,
            "seconds": {result.step.stage.name: result.seconds for result in runner.results},
            "rows_per_second": round(rows / seconds, 1),
            "peak_mib": {name: round(size / 2**20) for name, size in seen.items()},
        }


class _Quiet(Lines):
    def __init__(self) -> None:
        from rich.console import Console

        super().__init__(Console(quiet=True), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--model", type=Path, help="folder in Hugging Face format; default: SmolLM2-135M-Instruct")
    parser.add_argument("--report", action="store_true", help="measure rondo data on the file instead")
    options = parser.parse_args()
    if len(options.rows) == 1:
        print(json.dumps(measure(options.rows[0], model_folder(options.model), options.report)))
        return
    found = []
    for rows in options.rows:
        arguments = [sys.executable, "-m", "benchmarks.prepare_scale", "--rows", str(rows)]
        arguments += ["--model", str(model_folder(options.model)), *(["--report"] if options.report else [])]
        done = subprocess.run(arguments, stdout=subprocess.PIPE, check=True, text=True)
        found.append(json.loads(done.stdout))
        print(json.dumps(found[-1]), file=sys.stderr)
    ratios = {name: round(found[-1]["peak_mib"][name] / found[0]["peak_mib"][name], 2) for name in found[0]["peak_mib"]}
    ratios["rows_per_second"] = round(found[-1]["rows_per_second"] / found[0]["rows_per_second"], 2)
    print(json.dumps({"sizes": found, "last_to_first": ratios}, indent=1))


if __name__ == "__main__":
    main()
