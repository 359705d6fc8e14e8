"""Log-probabilities of responses under a causal language model, and the gradient of a loss computed from them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from stages.core.forward.decoder import PackedDecoder, is_llama_like
from stages.core.forward.head import FusedHead, Weigh
from stages.core.forward.masks import rows_are_known
from stages.core.forward.own_layers import OwnLayers
from stages.core.forward.packing import Batch, Layout
from stages.core.forward.virtual_tokens import hidden_states, is_prompt_learning


class Scored(NamedTuple):
    """``handle``: a scalar whose backward pass yields the gradient that ``weigh`` asked for; its value means
    nothing. ``logprobs``: float32 [2 * pairs], sums over each response's tokens, chosen and rejected in turn.
    ``confidences``: likewise, means of log p(token) - log sum_v p(v)^2 (zeros unless asked for)."""

    handle: Tensor
    logprobs: Tensor
    confidences: Tensor


class ResponseLogprobs(torch.nn.Module):
    """A causal language model whose forward pass scores responses.

    The head and the log-softmax run on response tokens only. ``precision`` is that of the matrix products, ``bf16``
    or ``fp32``; sums are float32 in both.
    """

    def __init__(self, model: Any, layout: Layout, precision: str, checkpointing: bool = False) -> None:
        super().__init__()
        self.model = model
        self.layout = layout
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.packed = None if layout == "padded" else packed_decoder(decoder_of(model), checkpointing)
        self.keeps_head = True
        """Whether a head that is not trained is converted once; not where it is only here during a step."""
        self._frozen_head: Tensor | None = None
        if checkpointing and self.packed is None:
            model.gradient_checkpointing_enable({"use_reentrant": False})

    def forward(self, batch: Batch, weigh: Weigh | None = None, confident: bool = False) -> Scored:
        """Score a batch collated in this layout; with ``weigh``, for a backward pass through ``handle``."""
        if self.packed is None:
            hidden = self._padded(batch).flatten(0, 1)[batch.rows].to(self.dtype)
        else:
            assert batch.segments is not None
            hidden = self.packed(batch.ids, batch.positions, batch.segments, batch.rows, self.dtype)
        head = self.model.get_output_embeddings()
        if type(head) is torch.nn.Linear and head.bias is None and not _scales_logits(self.model.config):
            return Scored(*FusedHead.apply(hidden, self._head_weight(head), batch, weigh, confident))
        with self._autocast(batch.ids.device):
            logits = head(hidden)
        return _score(_scaled(logits.float(), self.model.config), batch, weigh)

    def release(self) -> None:
        """Restore the model's own forward pass."""
        if self.packed is not None:
            self.packed.release()

    def _padded(self, batch: Batch) -> Tensor:
        """Final hidden states [sequences, length, width] by the model's own forward pass."""
        with self._autocast(batch.ids.device), rows_are_known():
            if is_prompt_learning(self.model):
                return hidden_states(self.model, batch.ids, torch.ones_like(batch.ids))
            states: Tensor = decoder_of(self.model)(input_ids=batch.ids, use_cache=False).last_hidden_state
            return states

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def _head_weight(self, head: torch.nn.Linear) -> Tensor:
        """The head's weight in the products' precision; one that is not trained is converted once."""
        if head.weight.requires_grad or head.weight.dtype == self.dtype or not self.keeps_head:
            return head.weight.to(self.dtype)
        if self._frozen_head is None:
            self._frozen_head = head.weight.detach().to(self.dtype)
        return self._frozen_head


def _score(logits: Tensor, batch: Batch, weigh: Weigh | None) -> Scored:
    """What :class:`FusedHead` computes, from logits by autograd, for heads that are more than one product."""
    logged = torch.log_softmax(logits, -1)
    tokens = logged.gather(1, batch.targets[:, None])[:, 0]
    zeros = torch.zeros(2 * batch.pairs, dtype=torch.float32, device=logits.device)
    sums = zeros.index_add(0, batch.sequences, tokens)
    with torch.no_grad():
        confident = tokens - torch.logsumexp(2 * logged, -1)
        means = zeros.index_add(0, batch.sequences, confident) / batch.tokens_of().clamp(min=1)
    if weigh is None:
        return Scored(zeros.sum(), sums.detach(), means)
    slopes = weigh(0, batch.pairs, sums.detach(), means)
    return Scored((slopes * sums).sum(), sums.detach(), means)


def decoder_of(model: Any) -> Any:
    """The model without its head; adapters are inside it, whatever wraps the model."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder = base.get_decoder()
    return base.model if decoder is base else decoder  # Llama 4's text model is not found by its name


def _scales_logits(config: Any) -> bool:
    names = ("logits_scaling", "logit_scale", "final_logit_softcapping", "logits_mup_width_multiplier")
    return any(getattr(config, name, None) for name in names)


def _scaled(logits: Tensor, config: Any) -> Tensor:
    """What some architectures do to their logits after the head."""
    if scaling := getattr(config, "logits_scaling", None):  # Granite
        logits = logits / scaling
    if width := getattr(config, "logits_mup_width_multiplier", None):  # Inkling
        logits = logits / width
    if scale := getattr(config, "logit_scale", None):  # Cohere
        logits = logits * scale
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma 2
        logits = cap * torch.tanh(logits / cap)
    return logits


def packed_decoder(decoder: Any, checkpointing: bool = False) -> PackedDecoder | OwnLayers:
    """What runs a decoder over packed rows: Rondo's own path for decoders like Llama's, or the decoder's layers."""
    return (PackedDecoder if is_llama_like(decoder) else OwnLayers)(decoder, checkpointing)


def freeze(model: Any, precision: str) -> Any:
    """Hold untrained linear layers in the products' precision: they would be rounded to it in every forward pass
    anyway. Weights shared with the token embedding stay as they are. Trained layers of a reference are frozen
    first."""
    if precision == "bf16":
        embedding = model.get_input_embeddings().weight
        for module in model.modules():
            if type(module) is torch.nn.Linear and not module.weight.requires_grad and module.weight is not embedding:
                module.weight.data = module.weight.data.to(torch.bfloat16)
    return model
