"""What a job takes along: the spec's folder."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import pytest

from clusters import folder as travelling
from clusters.slurm import SlurmCluster
from stages.base import StageError
from tests.unit.test_cli import rondo
from tests.unit.workspace import SPEC

SLURM = SlurmCluster(kind="slurm", store="s3://bucket/runs", cpus_per_node=8, time="1:00:00")


def test_what_stands_outside_of_the_folder_is_named_before_anything_is_sent(folder: Path) -> None:
    for name in ("train.jsonl", "judges.py"):
        (folder / name).write_text('{"prompt": "Hi"}\n' if name == "train.jsonl" else "class Judge:\n    pass\n")
    (folder / "sent" / "spec.yaml").write_text(
        SPEC.replace("train: train.jsonl", "train: ../train.jsonl").replace("sentiment", '"judges:Judge"')
    )
    found = rondo("submit", "sent/spec.yaml", "--cluster", "ray.yaml", "--dry-run")
    assert found.exit_code == 2
    assert "2 problems" in found.stderr
    assert "spec.yaml:3 prompts.train: ../train.jsonl does not travel with the job" in found.stderr
    assert "judges.py stands in the current folder; put it beside the spec" in found.stderr


def test_the_same_folder_is_packed_into_the_same_bytes_without_what_is_hidden(folder: Path) -> None:
    place = folder / "sent"
    for name in (".env", "__pycache__/x.pyc", "venv/pyvenv.cfg", "venv/lib.py", "deep/er/a.txt", ".git/config"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("x")
    (place / "link").symlink_to(folder / "ray.yaml")
    for name in ("one.zip", "two.zip"):
        travelling.pack(place, folder / name, 1 << 20)
        os.utime(place / "deep" / "er" / "a.txt", (0, 0))
    assert (folder / "one.zip").read_bytes() == (folder / "two.zip").read_bytes()
    with zipfile.ZipFile(folder / "one.zip") as archive:
        names = archive.namelist()
    assert "deep/er/a.txt" in names
    assert "spec.yaml" in names
    assert not [name for name in names if name.startswith((".", "venv", "__pyc", "link"))]
    (place / "large").write_bytes(b"x" * (1 << 20))
    with pytest.raises(StageError, match=r"holds more than 1.0 MiB: large \(1.0 MiB\), "):
        travelling.pack(place, folder / "three.zip", 1 << 20)


def test_what_is_named_goes_along_or_is_said(folder: Path) -> None:
    """A link out of the folder, a folder that is one, a recipe by its path, a spec that is a link."""
    (folder / "elsewhere").mkdir()
    (folder / "sent" / "heldout.jsonl").rename(folder / "elsewhere" / "heldout.jsonl")
    (folder / "sent" / "heldout.jsonl").symlink_to(folder / "elsewhere" / "heldout.jsonl")
    (folder / "sent" / "data").symlink_to(folder / "elsewhere")
    for options in ([], ["--set", "prompts.heldout=data/*.jsonl"]):
        found = rondo("submit", "sent/spec.yaml", "--cluster", "ray.yaml", "--dry-run", *options)
        assert found.exit_code == 2
        assert "prompts.heldout: " in found.stderr
        assert "does not travel with the job" in found.stderr
    (folder / "sent" / "heldout.jsonl").unlink()
    (folder / "elsewhere" / "heldout.jsonl").rename(folder / "sent" / "heldout.jsonl")
    (folder / "link.yaml").symlink_to("sent/spec.yaml")
    for name in ("link.yaml", "sent/spec.yaml"):
        shown = rondo("submit", name, "--cluster", "ray.yaml", "--dry-run", "--set", "prompts.train=tr*.jsonl").stdout
        assert "entrypoint: rondo run ./spec.yaml " in shown
        assert f"working_dir: {folder}/sent\n" in shown
    assert "rondo sweep sweep --" in rondo("submit", "sweep", "--cluster", "ray.yaml", "--sweep", "--dry-run").stdout
    shown = rondo("submit", "quickstart", "--cluster", "ray.yaml", "--dry-run").stdout
    assert "entrypoint: rondo run quickstart " in shown
    assert "working_dir" not in shown


def test_models_of_judges_and_baselines_come_from_the_hub_or_go_along(folder: Path) -> None:
    hub = f"{{model: owner/model, revision: {'a' * 40}}}"
    text = SPEC.replace("{use: sentiment}", f"{{use: reward_model, model: {hub}}}")
    (folder / "sent" / "spec.yaml").write_text(f"{text}evaluate: {{against: [{hub}]}}\n")
    found = rondo("submit", "sent/spec.yaml", "--cluster", "ray.yaml", "--dry-run")
    assert "does not travel" not in found.stderr
    assert found.exit_code == 0, found.stderr
    shutil.copytree(folder / "sent" / "model", folder / "outside")
    (folder / "sent" / "spec.yaml").write_text(f"{SPEC}evaluate: {{against: [{{model: ../outside}}]}}\n")
    found = rondo("submit", "sent/spec.yaml", "--cluster", "ray.yaml", "--dry-run")
    assert "evaluate.against.0.model: ../outside does not travel with the job" in found.stderr
