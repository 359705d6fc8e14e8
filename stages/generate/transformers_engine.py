"""transformers' generate as an engine."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from stages.base import StageError
from stages.core.forward.virtual_tokens import is_prompt_learning
from stages.generate.config import RolloutConfig
from stages.generate.engine import Engine, Sample, distinct
from stages.generate.serving import Weights
from stages.policy.adapters import attach
from stages.policy.load import device_of_worker, load_model, load_policy, load_tokenizer, stop_tokens


class TransformersEngine(Engine):
    """Slower than vLLM, and runs wherever torch does. Prompts are answered in batches, to the longest answer's end."""

    room = 128

    def __init__(self, config: RolloutConfig, weights: Weights, cpus: int) -> None:
        if config.engine_options:
            raise StageError("rollout.engine_options are those of vLLM, and the engine is transformers; leave them out")
        torch.set_num_threads(cpus)
        torch.manual_seed(config.seed)
        self.config = config
        self.waiting: dict[Any, list[int]] = {}
        self.device = device_of_worker()
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

    def add(self, key: Any, prompt: Sequence[int]) -> None:
        self.waiting[key] = list(prompt)

    def step(self) -> list[tuple[Any, list[Sample]]]:
        keys = list(self.waiting)[: max(1, self.room // distinct(self.config))]
        prompts = [self.waiting.pop(key) for key in keys]
        return list(zip(keys, self._answers(prompts), strict=True)) if keys else []

    @torch.inference_mode()
    def _answers(self, prompts: Sequence[Sequence[int]]) -> list[list[Sample]]:
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
