"""Generation engines behind one seam: vLLM, and transformers where vLLM cannot run.

An engine takes prompts as token ids and gives, for each, n samples.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import GenerationConfig

from stages.base import StageError
from stages.core.forward.virtual_tokens import is_prompt_learning
from stages.generate.config import RolloutConfig
from stages.generate.serving import Weights
from stages.io.filenames import MODEL
from stages.policy.adapter_settings import prompt_adapter
from stages.policy.adapters import attach
from stages.policy.load import device_of_worker, load_model, load_policy, load_tokenizer, product_precision, stop_tokens

_LORA_RANKS = (8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Sample:
    token_ids: list[int]
    finish_reason: str
    """``stop`` or ``length``."""


class Engine(Protocol):
    def generate(self, prompts: Sequence[Sequence[int]]) -> list[list[Sample]]: ...

    def close(self) -> None:
        """Free what the engine holds; the process may serve another afterwards."""
        ...


def make(config: RolloutConfig, weights: Weights, cpus: int) -> Engine:
    """The engine that the plan decided on (``config.choose_engine``)."""
    if config.engine == "vllm":
        return VllmEngine(config, weights, cpus)
    return TransformersEngine(config, weights, cpus)


def distinct(config: RolloutConfig) -> int:
    """How many of the samples of a prompt can differ: greedy ones are all the same, so one is computed."""
    return config.samples if config.temperature else 1


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


class VllmEngine:
    """vLLM's offline engine. CPU: eager, since compiling takes longer than most rollouts there."""

    def __init__(self, config: RolloutConfig, weights: Weights, cpus: int) -> None:
        from vllm import LLM, SamplingParams
        from vllm.lora.request import LoRARequest

        if prompt_adapter(weights.model) is not None:
            raise StageError("vLLM cannot serve virtual tokens; set rollout.engine to transformers")
        gpu = torch.cuda.is_available()
        products = "bfloat16" if product_precision("bf16", device_of_worker()) == "bf16" else "float32"
        options: dict[str, Any] = {} if gpu else {"dtype": products, "enforce_eager": True}
        self.lora = None
        if weights.adapter is not None:
            self.lora = LoRARequest(weights.adapter_name, 1, str(weights.adapter.absolute()))
            options |= {"enable_lora": True, "max_lora_rank": lora_room(weights.adapter)}
        set_threads = torch.set_num_threads
        self.llm = LLM(
            model=str((weights.model / MODEL).absolute()),
            max_model_len=config.max_length,
            skip_tokenizer_init=True,  # tokens go in and come out: no second tokenizer
            seed=config.seed,
            disable_log_stats=True,
            **options,
        )
        if not gpu:
            # vLLM's worker puts a function that does nothing in its place, here and for every later stage.
            torch.set_num_threads = set_threads
            torch.set_num_threads(cpus)
        self.samples = config.samples
        # The engine's own seed: seeds of requests fail on CPU together with top_p.
        self.params = SamplingParams(
            n=distinct(config),
            temperature=config.temperature,
            top_p=config.top_p,
            max_tokens=config.max_tokens,
            stop_token_ids=stop_tokens(weights.model),
            detokenize=False,
        )

    def generate(self, prompts: Sequence[Sequence[int]]) -> list[list[Sample]]:
        inputs = [{"prompt_token_ids": list(ids)} for ids in prompts]
        outputs = self.llm.generate(inputs, self.params, use_tqdm=False, lora_request=self.lora)
        repeat = self.samples // self.params.n
        return [
            [Sample(list(o.token_ids), "length" if o.finish_reason == "length" else "stop") for o in output.outputs]
            * repeat
            for output in outputs
        ]

    def close(self) -> None:
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        cleanup_dist_env_and_memory()


class TransformersEngine:
    """transformers' generate: slower, and runs wherever torch does."""

    def __init__(self, config: RolloutConfig, weights: Weights, cpus: int) -> None:
        torch.set_num_threads(cpus)
        torch.manual_seed(config.seed)
        self.config = config
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if weights.adapter is None:
            self.model = load_policy(weights.model, self.device).eval()
        else:
            self.model = attach(load_model(weights.model, self.device), weights.adapter).eval()
        tokenizer = load_tokenizer(weights.model)
        bare = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        self.ends = stop_tokens(weights.model)
        bare.generation_config = GenerationConfig()  # no penalties but those that were asked for
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    def close(self) -> None:
        del self.model

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[int]]) -> list[list[Sample]]:
        if not is_prompt_learning(self.model):
            return self._together(prompts)
        # Padding would stand between the virtual tokens and the prompt and move them apart.
        answers: dict[int, list[Sample]] = {}
        for length in sorted({len(prompt) for prompt in prompts}):
            rows = [row for row, prompt in enumerate(prompts) if len(prompt) == length]
            answers |= zip(rows, self._together([prompts[row] for row in rows]), strict=True)
        return [answers[row] for row in range(len(prompts))]

    def _together(self, prompts: Sequence[Sequence[int]]) -> list[list[Sample]]:
        """One batch, padded on the left."""
        length = max(map(len, prompts))
        ids = torch.tensor([[self.pad] * (length - len(p)) + list(p) for p in prompts], device=self.device)
        mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts], device=self.device)
        sampling: dict[str, Any] = {"do_sample": False}
        if self.config.temperature:
            sampling = {
                "do_sample": True, "temperature": self.config.temperature, "top_p": self.config.top_p, "top_k": 0,
            }  # fmt: skip
        wanted = distinct(self.config)
        with warnings.catch_warnings():
            # peft leaves positions to the model where there are virtual tokens; without padding that is right.
            warnings.filterwarnings("ignore", "Position ids are not supported for parameter efficient tuning")
            output = self.model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=self.config.max_tokens, num_return_sequences=wanted,
                pad_token_id=self.pad, eos_token_id=self.ends, **sampling,
            )  # fmt: skip
        samples = [self._sample(row) for row in output[:, length:].tolist()]
        repeat = self.config.samples // wanted
        return [samples[i : i + wanted] * repeat for i in range(0, len(samples), wanted)]

    def _sample(self, ids: list[int]) -> Sample:
        end = next((index for index, token in enumerate(ids) if token in self.ends), None)
        return Sample(ids, "length") if end is None else Sample(ids[: end + 1], "stop")
