"""How a policy answers prompts: configuration."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from stages.base import Config, plain

_CAPACITY = frozenset({
    "block_size", "cpu_offload_gb", "enable_prefix_caching", "enforce_eager", "gpu_memory_utilization",
    "kv_cache_memory_bytes", "max_num_batched_tokens", "max_num_seqs", "max_parallel_loading_workers",
    "num_gpu_blocks_override", "use_tqdm_on_load",
})  # fmt: skip
"""Settings of vLLM that say how much of the machine it takes, not what it says: no part of the identity."""

_CODE = "the code or files that it names would be no part of the identity"
_MODEL = "it depends on the policy"
_ELSEWHERE = {
    **dict.fromkeys(("model", "tokenizer", "load_format", "hf_token", "enable_lora", "max_lora_rank"), _MODEL),
    **dict.fromkeys(
        ("logits_processors", "worker_cls", "worker_extension_cls", "scheduler_cls", "io_processor_plugin",
         "reasoning_parser_plugin", "model_weights", "hf_config_path", "speculative_config", "spec_model"), _CODE),
    **dict.fromkeys(
        ("pipeline_parallel_size", "nnodes", "distributed_executor_backend"),
        "an engine stays on one machine; use resources.rollout.tensor_parallel"),
    "skip_tokenizer_init": "tokens go in and come out",
    "disable_log_stats": "they are not shown",
    "trust_remote_code": "no code of a model is run",
    "seed": "use rollout.seed",
    "max_model_len": "use rollout.max_length",
    "tensor_parallel_size": "use resources.rollout.tensor_parallel",
    "data_parallel_size": "use resources.rollout.workers",
}  # fmt: skip


def _allowed(value: dict[str, Any]) -> dict[str, Any]:
    for name in value:
        if name in _ELSEWHERE:
            raise ValueError(f"{name} is not set here: {_ELSEWHERE[name]}")
    return plain(value)


EngineOptions = Annotated[dict[str, Any], AfterValidator(_allowed)]
"""vLLM's own settings by name."""


class RolloutConfig(Config):
    samples: PositiveInt = 4
    temperature: NonNegativeFloat = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: PositiveInt = 256
    max_length: PositiveInt = 2048
    """Tokens of prompt and response together that the engine makes room for."""
    engine: Literal["auto", "vllm", "transformers"] = "auto"
    engine_options: EngineOptions = Field(default_factory=dict)
    """vLLM's own settings by name, such as ``gpu_memory_utilization``, ``max_num_seqs`` or ``quantization``."""
    seed: NonNegativeInt = 0

    @property
    def text_options(self) -> dict[str, Any]:
        """The engine's options that can change a text."""
        return {name: value for name, value in self.engine_options.items() if name not in _CAPACITY}

    def identity(self) -> dict[str, Any]:
        """Without what only says how much is done at a time."""
        return self.model_copy(update={"engine_options": self.text_options}).model_dump(
            mode="json", exclude_defaults=True
        )

    def sampling(self) -> dict[str, Any]:
        """How a text was sampled, as it is kept with it."""
        options = {"engine_options": self.text_options} if self.text_options else {}
        return self.model_dump(mode="json", exclude={"engine", "engine_options"}) | options


def choose_engine(engine: str, prompt_learning: bool = False) -> str:
    """``auto`` is vLLM where it is installed and can serve the policy (it knows no virtual tokens), else transformers.
    Decided when a plan is made, so that the answers of one engine are never taken for the other's."""
    if engine != "auto":
        return engine
    return "vllm" if find_spec("vllm") and not prompt_learning else "transformers"
