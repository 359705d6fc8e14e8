"""The engines there are, behind one seam: vLLM, and transformers where vLLM cannot run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.base import StageError
from stages.generate.config import RolloutConfig
from stages.generate.engine import Engine
from stages.generate.serving import Weights


def make(
    config: RolloutConfig, weights: Weights, cpus: int, gpus: float = 0, schema: Mapping[str, Any] | None = None
) -> Engine:
    """The engine that the plan decided on (``config.choose_engine``). A ``schema`` is the JSON schema that every answer
    follows; only vLLM can see to that.

    Raises:
        StageError: it cannot serve these weights, or does not know one of its options.
    """
    if config.engine == "vllm":
        from stages.generate.vllm_engine import VllmEngine

        return VllmEngine(config, weights, cpus, gpus, schema)
    if schema is not None:
        raise StageError("answers that follow a schema need vLLM, which is not installed here")
    from stages.generate.transformers_engine import TransformersEngine

    return TransformersEngine(config, weights, cpus)
