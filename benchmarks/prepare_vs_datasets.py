"""Template and tokenise pairs: Rondo against batched ``datasets.map(num_proc=2)`` and TRL's own preparation, in turn.

    python -m benchmarks.prepare_vs_datasets [--rows 20000] [--rounds 3] [--trl-python PYTHON]

Each run has its own process; reading the rows and starting are not timed. Every side must give the same ids.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.prepare_side import WAYS
from benchmarks.setup import child, model_folder


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path, help="folder in Hugging Face format; default: SmolLM2-135M-Instruct")
    parser.add_argument("--trl-python", default=sys.executable, help="where trl and datasets can be imported")
    return parser.parse_args()


def main() -> None:
    options = parse()
    folder = model_folder(options.model)
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for number in range(options.rounds):
        for way, found in runs.items():
            python = sys.executable if way.startswith("rondo") else options.trl_python
            settings = {"model": str(folder), "rows": options.rows, "way": way}
            found.append(child(python, "benchmarks.prepare_side", settings, {}))
            print(f"round {number + 1}, {way}: {options.rows / found[-1]['seconds']:.0f} rows/s", file=sys.stderr)
    print(json.dumps({"model": folder.name, "rows": options.rows, **compare(runs, options.rows)}, indent=1))


def compare(runs: Mapping[str, Sequence[Mapping[str, Any]]], rows: int) -> dict[str, Any]:
    """Rates, and Rondo's over the others' as the median of the rounds' ratios.

    Raises:
        SystemExit: two sides gave other ids.
    """
    first = {way: found[0]["digest"] for way, found in runs.items()}
    if len({run["digest"] for found in runs.values() for run in found}) > 1:
        raise SystemExit(f"the sides do not give the same ids: {first}")
    return {
        "rows_per_second": _compared(runs, rows, "seconds"),
        "rows_per_cpu_second": _compared(runs, rows, "cpu_seconds"),
    }


def _compared(runs: Mapping[str, Sequence[Mapping[str, Any]]], rows: int, clock: str) -> dict[str, Any]:
    rates = {way: [rows / run[clock] for run in found] for way, found in runs.items()}
    ratios = {
        f"{mine}_over_{theirs}": [a / b for a, b in zip(rates[mine], rates[theirs], strict=True)]
        for mine in rates if mine.startswith("rondo")
        for theirs in rates if not theirs.startswith("rondo")
    }  # fmt: skip
    return {
        "median": {way: round(statistics.median(found)) for way, found in rates.items()},
        "each": {way: [round(rate) for rate in found] for way, found in rates.items()},
        "ratios": {name: round(statistics.median(found), 2) for name, found in ratios.items()},
        "ratios_each": {name: [round(ratio, 2) for ratio in found] for name, found in ratios.items()},
    }


if __name__ == "__main__":
    main()
