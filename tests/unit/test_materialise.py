"""A base model becomes a policy artifact, from a folder or from the hub's local cache."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub.constants
import pytest
from safetensors.torch import load_file

from stages.base import Artifact, Resources, StageContext, StageError
from stages.policy import materialise
from stages.policy.config import MaterialiseConfig
from stages.policy.load import load_encoder
from tests import tiny

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def context(tmp_path: Path) -> StageContext:
    output, work = tmp_path / "output", tmp_path / "work"
    output.mkdir()
    work.mkdir()
    return StageContext("base", output, work, Resources(), lambda done, total, note: None)


def test_a_folder_is_copied_whole_and_without_anything_that_could_run(context: StageContext, tmp_path: Path) -> None:
    source = tiny.save(tmp_path / "source")
    (source / "pytorch_model.bin").write_bytes(b"could run code when read")
    (source / "modeling_own.py").write_text("print('no')")
    summary = materialise.run(MaterialiseConfig(), {"source": Artifact(source, "x")}, context)
    model = context.output / "model"
    names = {path.name for path in model.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert not {"pytorch_model.bin", "modeling_own.py"} & names
    assert summary["parameters"] == sum(tensor.numel() for tensor in load_file(model / "model.safetensors").values())
    assert load_encoder(context.output).prompt([{"role": "user", "content": "hi"}])


def test_a_hub_model_is_taken_at_its_commit(
    context: StageContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache" / "models--owner--name"
    tiny.save(folder / "snapshots" / COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    summary = materialise.run(MaterialiseConfig(hub="owner/name", revision=COMMIT), {}, context)
    assert (summary["source"], summary["revision"]) == ("owner/name", COMMIT)
    assert (context.output / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("missing", "part"), [("chat_template.jinja", "no chat template"), ("model.safetensors", "no *.safetensors")]
)
def test_a_model_that_lacks_a_part_is_refused(context: StageContext, tmp_path: Path, missing: str, part: str) -> None:
    source = tiny.save(tmp_path / "source")
    (source / missing).unlink()
    with pytest.raises(StageError) as caught:
        materialise.run(MaterialiseConfig(), {"source": Artifact(source, "x")}, context)
    assert part in str(caught.value)


def test_a_model_with_code_of_its_own_runs_none_of_it(context: StageContext, tmp_path: Path) -> None:
    source = tiny.save(tmp_path / "source")
    marker = tmp_path / "ran"
    (source / "own.py").write_text(f"open({str(marker)!r}, 'w')")
    settings = json.loads((source / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["own.Tokenizer", None]}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    materialise.run(MaterialiseConfig(), {"source": Artifact(source, "x")}, context)
    assert not marker.exists()
