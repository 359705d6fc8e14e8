"""The engines there are, behind one seam: vLLM, and transformers where vLLM cannot run."""

from __future__ import annotations

from stages.generate.config import RolloutConfig
from stages.generate.engine import Engine
from stages.generate.serving import Weights


def make(config: RolloutConfig, weights: Weights, cpus: int, gpus: float = 0) -> Engine:
    """The engine that the plan decided on (``config.choose_engine``).

    Raises:
        StageError: it cannot serve these weights, or does not know one of its options.
    """
    if config.engine == "vllm":
        from stages.generate.vllm_engine import VllmEngine

        return VllmEngine(config, weights, cpus, gpus)
    from stages.generate.transformers_engine import TransformersEngine

    return TransformersEngine(config, weights, cpus)
