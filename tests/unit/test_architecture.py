"""Every import points down (docs/architecture.toml), and configuration stands on configuration alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("pipelines", "stages", "clusters")
ROOMS = sorted(file.parent for name in PACKAGES for file in (ROOT / name).rglob("__init__.py"))


def test_every_import_points_down() -> None:
    program = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache", "docs/architecture.toml"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_configuration_stands_on_the_floor_and_other_configuration() -> None:
    graph = grimp.build_graph("stages")
    configs = [module for module in graph.modules if module.endswith(".config")]
    assert len(configs) >= 10
    floor = ("stages.base", "stages.hints")
    for module in configs:
        imported = graph.find_modules_directly_imported_by(module)
        assert all(name in floor or name.endswith(".config") for name in imported), (module, imported)


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(ROOT)))
def test_every_room_says_what_it_is_for(room: Path) -> None:
    assert ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))
