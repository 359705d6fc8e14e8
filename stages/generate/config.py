"""How a policy answers prompts: configuration."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from stages.base import Config


class RolloutConfig(Config):
    samples: PositiveInt = 4
    temperature: NonNegativeFloat = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: PositiveInt = 256
    max_length: PositiveInt = 2048
    """Tokens of prompt and response together that the engine makes room for."""
    engine: Literal["auto", "vllm", "transformers"] = "auto"
    seed: NonNegativeInt = 0


def choose_engine(engine: str, prompt_learning: bool = False) -> str:
    """``auto`` is vLLM where it is installed and can serve the policy (it knows no virtual tokens), else transformers.
    Decided when a plan is made, so that the answers of one engine are never taken for the other's."""
    if engine != "auto":
        return engine
    return "vllm" if find_spec("vllm") and not prompt_learning else "transformers"
