"""Log-probabilities of responses under a causal language model."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.core.batching import Batch


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Products in bfloat16 for ``bf16``; float32 throughout for ``fp32``. Weights stay as they are."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


class ResponseLogprobs(torch.nn.Module):
    """A causal language model whose forward pass gives one log-probability a sequence.

    The head and the log-softmax run on response positions only. Sequences are padded on the right, so that a
    causal model needs no padding mask: no token sees one to its right.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Sum over the marked tokens of log p(token | all before it).

        Args:
            ids: int64 [sequences, length].
            mask: bool [sequences, length]; True where a token counts. Position 0 has nothing before it and
                never counts.

        Returns:
            float32 [sequences].
        """
        counts = mask[:, 1:]
        hidden = _decoder(self.model)(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        logits = _scaled(self.model.get_output_embeddings()(hidden[counts]).float(), self.model.config)
        token = -F.cross_entropy(logits, ids[:, 1:][counts], reduction="none")
        rows = counts.nonzero()[:, 0]
        return torch.zeros(len(ids), dtype=torch.float32, device=ids.device).index_add(0, rows, token)


def _decoder(model: Any) -> Any:
    """The model without its head; adapters sit inside it, whatever wraps the model."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.get_decoder()


def _scaled(logits: Tensor, config: Any) -> Tensor:
    """What some architectures do to their logits after the head."""
    if scaling := getattr(config, "logits_scaling", None):  # Granite
        logits = logits / scaling
    if scale := getattr(config, "logit_scale", None):  # Cohere
        logits = logits * scale
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma 2
        logits = cap * torch.tanh(logits / cap)
    return logits


@torch.no_grad()
def agrees(model: Any) -> bool:
    """Whether :class:`ResponseLogprobs` gives what the model's own forward pass gives, on a few tokens.

    An architecture that treats its logits in a way of its own is found out here and not by a wrong loss.
    """
    device = next(model.parameters()).device
    ids = torch.arange(8, device=device)[None] % model.config.vocab_size
    mask = torch.ones_like(ids, dtype=torch.bool)
    logprobs = torch.log_softmax(model(input_ids=ids).logits.float(), -1)
    expected = logprobs[0, :-1].gather(1, ids[0, 1:, None]).sum()
    return bool(torch.isclose(ResponseLogprobs(model)(ids, mask)[0], expected, rtol=1e-3, atol=1e-2))


def sequence_logprobs(model: torch.nn.Module, batch: Batch, precision: str) -> tuple[Tensor, Tensor]:
    """Log-probabilities of chosen and rejected responses, float32 [pairs] each."""
    with autocast(batch.ids.device, precision):
        both = model(batch.ids, batch.mask)
    chosen, rejected = both.float().split(batch.pairs)
    return chosen, rejected
