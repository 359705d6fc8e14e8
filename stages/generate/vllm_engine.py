"""vLLM as an engine."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stages.base import StageError
from stages.generate.config import RolloutConfig
from stages.generate.engine import Engine, Sample, distinct
from stages.generate.serving import Weights
from stages.hints import closest
from stages.io.filenames import MODEL
from stages.policy.adapter_settings import prompt_adapter
from stages.policy.load import device_of_worker, product_precision, stop_tokens

_OF_A_GPU = 0.92
"""Of a GPU's memory what vLLM takes by default; engines that share one take as much of their part."""
_LORA_RANKS = (8, 16, 32, 64, 128, 256)


def lora_room(adapter: Path) -> int:
    """The smallest rank that vLLM makes room for and that holds this adapter.

    Raises:
        ValueError: its rank is above all of them.
    """
    rank = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["r"]
    room = [size for size in _LORA_RANKS if size >= rank]
    if not room:
        raise ValueError(f"vLLM serves adapters up to rank {_LORA_RANKS[-1]}, this one has {rank}")
    return room[0]


def known_options(options: dict[str, Any]) -> dict[str, Any]:
    """vLLM's own settings as they are given.

    Raises:
        StageError: this vLLM has no such setting; names the closest.
    """
    from vllm import EngineArgs

    names = {field.name for field in dataclasses.fields(EngineArgs)}
    for name in options:
        if name not in names:
            close = closest(name, names)
            meant = f"; did you mean {close}?" if close else ""
            raise StageError(f"rollout.engine_options: this vLLM has no setting {name}{meant}")
    return options


def _following(schema: Mapping[str, Any]) -> Any:
    from vllm.sampling_params import StructuredOutputsParams

    return StructuredOutputsParams(json=dict(schema), disable_any_whitespace=True)


class VllmEngine(Engine):
    """vLLM's engine in this process. CPU: eager, since compiling takes longer than most rollouts there."""

    def __init__(
        self, config: RolloutConfig, weights: Weights, cpus: int, gpus: float = 0,
        schema: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        if prompt_adapter(weights.model) is not None:
            raise StageError("vLLM cannot serve virtual tokens; set rollout.engine to transformers")
        from vllm import LLM, SamplingParams
        from vllm.lora.request import LoRARequest
        from vllm.sampling_params import RequestOutputKind

        gpu = torch.cuda.is_available()
        products = "bfloat16" if product_precision("bf16", device_of_worker()) == "bf16" else "float32"
        options: dict[str, Any] = {} if gpu else {"dtype": products, "enforce_eager": True, "max_num_seqs": 128}
        options |= {"tensor_parallel_size": int(gpus)} if gpus > 1 else {}
        options |= {"gpu_memory_utilization": _OF_A_GPU * gpus} if 0 < gpus < 1 else {}
        self.lora = None
        if weights.adapter is not None:
            self.lora = LoRARequest(weights.adapter_name, 1, str(weights.adapter.absolute()))
            options |= {"enable_lora": True, "max_lora_rank": lora_room(weights.adapter)}
        set_threads = torch.set_num_threads
        options |= known_options(config.engine_options)
        try:
            self.llm = LLM(
                model=str((weights.model / MODEL).absolute()),
                max_model_len=config.max_length,
                skip_tokenizer_init=schema is None,  # tokens go in and come out; a schema is one of texts
                seed=config.seed,
                disable_log_stats=True,
                **options,
            )
        except (TypeError, ValueError) as error:
            if not config.engine_options:
                raise
            words = " ".join(str(error).split())
            reason = f"vLLM does not start with rollout.engine_options {config.engine_options}: {words}"
            raise StageError(reason) from error
        if not gpu:
            # vLLM's worker puts a function that does nothing in its place, here and for every later stage.
            torch.set_num_threads = set_threads
            torch.set_num_threads(cpus)
        self.room = self.llm.llm_engine.vllm_config.scheduler_config.max_num_seqs
        self.config = config
        # The engine's own seed: seeds of requests fail on CPU together with top_p.
        self.params = SamplingParams(
            n=distinct(config),
            temperature=config.temperature,
            top_p=config.top_p,
            max_tokens=config.max_tokens,
            stop_token_ids=stop_tokens(weights.model),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            structured_outputs=_following(schema) if schema is not None else None,
        )
        self.keys: dict[str, Any] = {}
        self.asked = 0

    def add(self, key: Any, prompt: Sequence[int]) -> None:
        name, self.asked = str(self.asked), self.asked + 1
        self.keys[name] = key
        engine = self.llm.llm_engine
        (tokens,) = engine.renderer.render_cmpl([{"prompt_token_ids": list(prompt)}])
        engine.add_request(name, tokens, self.params.clone(), lora_request=self.lora)

    def step(self) -> list[tuple[Any, list[Sample]]]:
        outputs = self.llm.llm_engine.step() if self.keys else []
        return [(self.keys.pop(each.request_id), self._samples(each)) for each in outputs if each.finished]

    def _samples(self, output: Any) -> list[Sample]:
        samples = [
            Sample(list(o.token_ids), "length" if o.finish_reason == "length" else "stop") for o in output.outputs
        ]
        return samples * (self.config.samples // distinct(self.config))

    def close(self) -> None:
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        cleanup_dist_env_and_memory()
