"""A base model in whatever form becomes safetensors with a tokenizer and a chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.base import StageError
from stages.io.filenames import CHAT, MODEL
from stages.io.output import Output
from stages.policy.adapter_settings import ADAPTER_CONFIG
from stages.policy.adapters import attach
from stages.policy.config import MaterialiseConfig
from stages.policy.files import COPIED, copy_model, copy_tokenizer, keep_dtype, name_for_older_readers, remove_weights
from stages.policy.load import load_model, load_tokenizer
from stages.policy.save import save_weights, weights_dtype


def make(output: Output, _: object, config: MaterialiseConfig, source: Path | None, adapter: Path | None) -> int:
    """Write the policy as the artifact's only part; as :func:`convert`."""
    with output.part("policy") as part:
        return convert(config, source, adapter, part.folder)


def convert(config: MaterialiseConfig, source: Path | None, adapter: Path | None, policy: Path) -> int:
    """Put the model into the folder ``policy``; returns how many parameters it has. ``source`` is a folder or a GGUF
    file; without one it is downloaded.

    Raises:
        StageError: the result has no tokenizer or chat template, the weights are not safetensors, or the adapter does
            not fit them.
    """
    output = policy / MODEL
    source = source or _download(config)
    if (source / ADAPTER_CONFIG).is_file():  # transformers would load it on whatever base it names
        raise StageError(f"{source} holds an adapter ({ADAPTER_CONFIG}); give it as policy.adapter, on its own")
    if source.is_dir():
        copy_model(source, output)
    else:
        convert_gguf(source, output)
    if config.date is not None:
        (policy / CHAT).write_text(json.dumps({"date": config.date.isoformat()}), encoding="utf-8")
    if adapter is not None:
        copy_tokenizer(adapter, output)  # a fine-tuned adapter often has a chat template that its base lacks
    parameters = _verify(policy)
    if adapter is not None:
        _merge(policy, adapter)
    return parameters


def _download(config: MaterialiseConfig) -> Path:
    from huggingface_hub import snapshot_download

    assert config.hub is not None
    return Path(snapshot_download(config.hub, revision=config.revision, allow_patterns=list(COPIED)))


def convert_gguf(file: Path, output: Path) -> None:
    """Dequantise into a plain model of the same class, stored in bfloat16 (the file held 4 to 8 bits).

    transformers marks a model from GGUF as quantised and refuses to save it; a fresh one takes its weights.
    """
    loaded = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, local_files_only=True
    )
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)
    with torch.device("meta"):
        model = type(loaded)(type(loaded.config)(**settings))
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.to(torch.bfloat16).save_pretrained(output)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True).save_pretrained(output)
    name_for_older_readers(output)


def _merge(policy: Path, adapter: Path) -> None:
    """Merge the adapter into the stored weights for good: training starts from the result, which is also its
    reference."""
    folder = policy / MODEL
    model = attach(load_model(policy, torch.device("cpu")), adapter).merge_and_unload()
    if (dtype := weights_dtype(folder)) is not None:
        keep_dtype(folder, dtype)
    remove_weights(folder)
    save_weights(model, folder)


def _verify(policy: Path) -> int:
    """The stored model's number of parameters, after checking that all parts are there."""
    from safetensors import safe_open

    tokenizer: Any = load_tokenizer(policy)
    if not tokenizer.chat_template:
        raise StageError("the model has no chat template; add a chat_template.jinja to the folder and use that")
    if tokenizer.eos_token_id is None:
        raise StageError("the tokenizer has no end-of-sequence token; set eos_token in tokenizer_config.json")
    weights = sorted((policy / MODEL).glob("*.safetensors"))
    if not weights:
        raise StageError("the model has no *.safetensors weights; convert them first (other formats can run code)")
    total = 0
    for file in weights:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                shape = tensors.get_slice(name).get_shape()
                total += int(torch.Size(shape).numel())
    return total
