"""One local Ray cluster of two CPUs for the tests that call stages directly."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from clusters import local
from stages.base import Artifact, Config, Resources, Stage, StageContext
from tests import tiny


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    local.start(local.LocalCluster(kind="local", cpus=2))
    yield
    local.stop()


@pytest.fixture
def execute(cluster: None, tmp_path: Path) -> Callable[..., Artifact]:
    """Run one stage into a fresh folder and return what it made."""
    made = 0

    def call(
        stage: Stage[Any], config: Config, inputs: Mapping[str, Artifact | Path], resources: Resources | None = None
    ) -> Artifact:
        nonlocal made
        made += 1
        name = f"{made:02d}-{stage.name}"
        output, work = tmp_path / name, tmp_path / f"{name}-work"
        output.mkdir()
        work.mkdir()
        context = StageContext(name, output, work, resources or Resources(), lambda done, total, note: None)
        module, _, function = stage.run.partition(":")
        given = {k: v if isinstance(v, Artifact) else Artifact(v, k) for k, v in inputs.items()}
        summary = getattr(importlib.import_module(module), function)(config, given, context)
        return Artifact(output, name, summary)

    return call
