"""What may be imported without what; each question is put to a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HEAVY = {"ray", "vllm", "torch", "transformers", "peft"}
EVERY = """
import importlib, pkgutil, sys

def every(*names):
    for name in names:
        module = importlib.import_module(name)
        for inner in pkgutil.walk_packages(getattr(module, "__path__", []), name + "."):
            if not inner.name.endswith("__main__"):
                importlib.import_module(inner.name)
"""
LOADED = """
print(sorted({name.partition(".")[0] for name in sys.modules if sys.modules[name] is not None}))
"""


def roots(program: str) -> set[str]:
    """The top-level modules that are loaded when a program has run; it prints nothing else."""
    done = subprocess.run([sys.executable, "-c", program + LOADED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(eval(done.stdout.splitlines()[-1]))


def test_pipelines_and_the_core_stand_without_ray_and_vllm() -> None:
    blocked = "import sys\nsys.modules['ray'] = sys.modules['vllm'] = None\n"
    loaded = roots(f"{blocked}{EVERY}every('pipelines', 'clusters', 'stages.base', 'stages.catalog', 'stages.core')\n")
    assert {"pipelines", "clusters", "stages"} <= loaded
    assert not loaded & {"ray", "vllm"}


def test_pipelines_bring_in_nothing_heavy() -> None:
    loaded = roots(f"{EVERY}every('pipelines', 'clusters', 'stages.base', 'stages.catalog')\n")
    assert "pydantic" in loaded
    assert not loaded & HEAVY


def test_help_answers_without_anything_heavy() -> None:
    program = """
import sys
from pipelines.cli import app
try:
    app(["--help"])
except SystemExit as end:
    assert end.code == 0, end.code
"""
    loaded = roots(program)
    assert "typer" in loaded
    assert not loaded & (HEAVY | {"pyarrow", "pydantic", "numpy", "huggingface_hub"})


def test_a_bad_spec_is_refused_before_anything_heavy(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text("name: tiny\npolicy: {model: nowhere}\nrouns: 2\n")
    program = f"""
import sys
from pipelines.cli import app
try:
    app(["run", {str(spec)!r}])
except SystemExit as end:
    assert end.code == 2, end.code
"""
    assert not roots(program) & HEAVY


def test_the_driver_of_a_stage_does_without_torch() -> None:
    program = """
import sys
from stages.base import resolve
from stages.catalog import STAGES
for stage in STAGES:
    if stage.name not in ("heldout", "quality"):  # these do their work themselves
        resolve(stage.run)
"""
    loaded = roots(program)
    assert "ray" in loaded
    assert not loaded & {"vllm", "torch", "transformers", "peft"}
