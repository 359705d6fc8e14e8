"""One local Ray cluster of two CPUs for the tests that call stages directly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from clusters import local
from stages.base import Config, Resources, Stage
from stages.io.artifact import Artifact, UserFile
from tests import artifacts, tiny


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
        given = {
            name: UserFile(str(value), value.name) if isinstance(value, Path) else value
            for name, value in inputs.items()
        }
        return artifacts.run(stage, tmp_path / "store", config, given, resources, f"{made:02d}-{stage.name}")

    return call
