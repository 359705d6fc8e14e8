"""A base model becomes a policy artifact, from a folder or from the hub's local cache."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub.constants
import pytest
from safetensors.torch import load_file

from stages.base import StageError
from stages.catalog import MATERIALISE
from stages.io.artifact import Artifact, UserFile
from stages.policy.config import MaterialiseConfig
from stages.policy.load import load_encoder
from tests import artifacts, tiny

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def materialised(folder: Path, source: Path) -> Artifact:
    return artifacts.run(MATERIALISE, folder, MaterialiseConfig(), {"source": UserFile(str(source), "x")})


def test_a_folder_is_copied_whole_and_without_anything_that_could_run(tmp_path: Path) -> None:
    source = tiny.save(tmp_path / "source")
    (source / "pytorch_model.bin").write_bytes(b"could run code when read")
    (source / "modeling_own.py").write_text("print('no')")
    made = materialised(tmp_path, source)
    model = made.folder() / "model"
    names = {path.name for path in model.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert not {"pytorch_model.bin", "modeling_own.py"} & names
    assert made.summary["parameters"] == sum(
        tensor.numel() for tensor in load_file(model / "model.safetensors").values()
    )
    assert load_encoder(made.folder()).prompt([{"role": "user", "content": "hi"}])


def test_a_hub_model_is_taken_at_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache" / "models--owner--name"
    tiny.save(folder / "snapshots" / COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    made = artifacts.run(MATERIALISE, tmp_path, MaterialiseConfig(hub="owner/name", revision=COMMIT), {})
    assert (made.summary["source"], made.summary["revision"]) == ("owner/name", COMMIT)
    assert made.path("model/model.safetensors").is_file()


@pytest.mark.parametrize(
    ("missing", "part"), [("chat_template.jinja", "no chat template"), ("model.safetensors", "no *.safetensors")]
)
def test_a_model_that_lacks_a_part_is_refused(tmp_path: Path, missing: str, part: str) -> None:
    source = tiny.save(tmp_path / "source")
    (source / missing).unlink()
    with pytest.raises(StageError) as caught:
        materialised(tmp_path, source)
    assert part in str(caught.value)


def test_a_model_with_code_of_its_own_runs_none_of_it(tmp_path: Path) -> None:
    source = tiny.save(tmp_path / "source")
    marker = tmp_path / "ran"
    (source / "own.py").write_text(f"open({str(marker)!r}, 'w')")
    settings = json.loads((source / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["own.Tokenizer", None]}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    materialised(tmp_path, source)
    assert not marker.exists()
