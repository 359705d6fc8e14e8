"""A base model, wherever it comes from, becomes a policy artifact: safetensors, tokenizer, chat template."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stages.base import Summary
from stages.io.artifact import UserFile
from stages.io.context import StageContext
from stages.io.parts import run_alone
from stages.policy.config import MaterialiseConfig


def run(config: MaterialiseConfig, inputs: Mapping[str, UserFile], context: StageContext) -> Summary:
    """Copy a folder, download a hub snapshot, or convert a GGUF file; merge an adapter into it if one is given.

    Raises:
        StageError: the result has no tokenizer or chat template, the weights are not safetensors, or the adapter does
            not fit them.
    """
    source, adapter = (Path(inputs[name].location) if name in inputs else None for name in ("source", "adapter"))
    parameters = run_alone("stages.policy.convert:make", context, config, source, adapter)
    name = config.hub if source is None else source.name
    return {"parameters": parameters, "source": name, "revision": config.revision}
