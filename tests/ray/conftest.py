"""One local Ray cluster of two CPUs for the tests that call stages directly, and the order of the files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from clusters import local
from stages.base import Config, Resources, Stage
from stages.io.artifact import Artifact, UserFile
from tests import artifacts, tiny

_FIRST = (
    "quickstart", "sweep", "machines", "schedule", "bucket", "kill", "scale_out", "interrupt", "jobs", "judge_check",
    "judging", "slurm",
)  # fmt: skip
"""Files that start Ray more than once, the longest first: two processes that share the files out then end together. The
rest have many short tests, so that neither process holds a long one back behind another at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}": place for place, name in enumerate(_FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


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
