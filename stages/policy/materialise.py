"""A base model, wherever it comes from, becomes a policy artifact: safetensors, tokenizer, chat template."""

from __future__ import annotations

from collections.abc import Mapping

from stages.base import Artifact, StageContext, Summary
from stages.io.parts import call
from stages.policy.config import MaterialiseConfig


def run(config: MaterialiseConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Copy a folder, download a hub snapshot, or convert a GGUF file; merge an adapter into it if one is given.

    Raises:
        StageError: the result has no tokenizer or chat template, the weights are not safetensors, or the adapter does
            not fit them.
    """
    source = None if config.hub is not None else inputs["source"].path
    adapter = inputs["adapter"].path if "adapter" in inputs else None
    parameters = call("stages.policy.convert:convert", config, source, adapter, context.output)
    name = config.hub if source is None else source.name
    return {"parameters": parameters, "source": name, "revision": config.revision}
