"""Where a base model comes from, and what its identity is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.plan.base_model import base_step
from pipelines.plan.steps import Source
from pipelines.spec.checks import model as checks
from stages.policy.config import ModelSource
from tests.unit import workspace

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OFFLINE = """
import sys
from pathlib import Path
from pipelines.plan.base_model import base_step
from pipelines.spec.problems import SpecError
from stages.policy.config import ModelSource
try:
    step = base_step(ModelSource(model=sys.argv[1], revision=sys.argv[2]), Path("."))
    print(step.payload["config"]["revision"])
except SpecError as error:
    print("refused:", error)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that ships a model."""
    folder = tmp_path / "site" / "model_package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (folder / "small.gguf").write_bytes(b"GGUF weights")
    (folder / "deep").mkdir()
    (folder / "deep" / "other.gguf").write_bytes(b"GGUF others")
    (tmp_path / "site" / "secret.gguf").write_text("not in the package")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return folder


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """The hub's cache as it is after a download of ``owner/name`` at the tag ``v1``."""
    repository = tmp_path / "hub" / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "v1").write_text(COMMIT)
    (repository / "snapshots" / COMMIT).mkdir(parents=True)
    (repository / "snapshots" / COMMIT / "config.json").write_text("{}")
    return tmp_path / "hub"


def offline(hub: Path, model: str, revision: str) -> str:
    """What a fresh interpreter without network makes of a hub id; the hub's library reads its settings once."""
    environment = os.environ | {"HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"}
    program = [sys.executable, "-c", OFFLINE, model, revision]
    done = subprocess.run(program, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def at(model: str, base: Path, revision: str | None = None) -> list[str]:
    return checks.problems(ModelSource(model=model, revision=revision), base)


def source(model: str, base: Path) -> Source:
    found = base_step(ModelSource(model=model), base).inputs["source"]
    assert isinstance(found, Source)
    return found


def test_a_file_in_a_package_is_found_without_importing_it(package: Path, tmp_path: Path) -> None:
    assert at("pkg://model_package/small.gguf", tmp_path) == []
    assert source("pkg://model_package/small.gguf", tmp_path).path == package / "small.gguf"
    assert source("pkg://model_package/deep/other.gguf", tmp_path).path == package / "deep" / "other.gguf"
    assert "model_package" not in sys.modules


@pytest.mark.parametrize(
    "name", ["missing.gguf", "../secret.gguf", "../../../../../../etc/passwd", "", "deep", "/etc/passwd", "."]
)
def test_what_is_no_file_of_the_package_is_refused(package: Path, tmp_path: Path, name: str) -> None:
    (problem,) = at(f"pkg://model_package/{name}", tmp_path)
    assert "in the package 'model_package'" in problem
    assert problem.endswith("GGUF files there: small.gguf")


def test_a_link_out_of_the_package_is_refused(package: Path, tmp_path: Path) -> None:
    (package / "link.gguf").symlink_to(tmp_path / "site" / "secret.gguf")
    assert at("pkg://model_package/link.gguf", tmp_path) != []


def test_a_package_that_is_not_installed_is_refused(tmp_path: Path) -> None:
    (problem,) = at("pkg://no_such_package/x.gguf", tmp_path)
    assert "'no_such_package' is not installed" in problem


@pytest.mark.parametrize("reference", ["", "../x", "a b/x.gguf", "os.path/x.gguf", "__main__/x.gguf"])
def test_what_names_no_package_is_refused(tmp_path: Path, reference: str) -> None:
    (problem,) = at(f"pkg://{reference}", tmp_path)
    assert problem == f'expected "pkg://package/file.gguf", got "pkg://{reference}"'


def test_a_hostile_path_never_reaches_the_system(tmp_path: Path) -> None:
    (problem,) = at("pkg://x/../../etc/passwd", tmp_path)
    assert "'x' is not installed" in problem


def test_other_files_of_a_package_are_no_models(package: Path, tmp_path: Path) -> None:
    (problem,) = at("pkg://model_package/__init__.py", tmp_path)
    assert "expected a folder or a .gguf file" in problem


def test_a_folder_is_known_by_its_content(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        workspace.make(tmp_path / name)
    one, two = (base_step(ModelSource(model="model"), tmp_path / name) for name in ("one", "two"))
    assert one.fingerprint == two.fingerprint
    (tmp_path / "two" / "model" / "model.safetensors").write_text("other weights")
    assert base_step(ModelSource(model="model"), tmp_path / "two").fingerprint != one.fingerprint


def test_a_folder_goes_before_a_hub_id_of_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert source("owner/name", tmp_path).path == tmp_path / "owner" / "name"


def test_a_hub_id_without_revision_is_refused(tmp_path: Path) -> None:
    (problem,) = at("owner/name", tmp_path)
    assert "name its revision" in problem
    assert at("owner/name", tmp_path, "v1") == []


@pytest.mark.parametrize("model", ["nowhere", "./owner/name", "/owner/name", "a/b/c", "https://example.com/model"])
def test_what_is_neither_folder_nor_hub_id_is_refused(tmp_path: Path, model: str) -> None:
    (problem,) = at(model, tmp_path, "v1")
    assert "no such folder" in problem


def test_a_commit_needs_no_network(tmp_path: Path) -> None:
    """Nothing is in the cache, and nothing is asked for."""
    assert offline(tmp_path / "empty", "owner/name", COMMIT) == COMMIT


def test_a_tag_in_the_cache_is_resolved_to_its_commit(hub: Path) -> None:
    assert offline(hub, "owner/name", "v1") == COMMIT


@pytest.mark.parametrize(("model", "revision"), [("owner/name", "v2"), ("owner/other", "v1"), ("own--er/name", "v1")])
def test_a_revision_that_cannot_be_resolved_is_refused(hub: Path, model: str, revision: str) -> None:
    said = offline(hub, model, revision)
    assert said.startswith("refused: policy.")
    assert model in said
    assert revision in said


def test_the_commit_is_the_identity(tmp_path: Path) -> None:
    step = base_step(ModelSource(model="owner/name", revision=COMMIT), tmp_path)
    assert step.payload["config"] == {"hub": "owner/name", "revision": COMMIT}
    assert step.inputs == {}
