"""The forward pass of a model's own layers over packed rows: no padding, shared prompts computed once.

Covers every family whose attention goes through transformers' interface for it. Layers, norms, experts and positions
are the model's; only what a token sees, and how that is worked out, is Rondo's.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from stages.core.forward.attention import segmented_attention
from stages.core.forward.masks import rows_are_known
from stages.core.forward.segments import Segments, Variant

NAME = "rondo_packed"
"""What this attention is called in a model's configuration."""
_KINDS = {"full_attention", "sliding_attention"}
_segments: ContextVar[Segments] = ContextVar("segments of the packed row in a forward pass")


class NotPackable(Exception):
    """The model's layers do something that a packed row cannot have. The message says what."""


class _Seen(NamedTuple):
    """What stands in a mask's place, for layers of one kind."""

    segments: Segments
    window: int | None


def obstacle(decoder: Any) -> str | None:
    """What is known, without running it, to keep a decoder from packed rows; None if nothing is."""
    config = decoder.config
    if not hasattr(decoder, "set_attn_implementation") or not type(decoder)._can_set_attn_implementation():
        return "its attention does not go through transformers' interface"
    if not getattr(config, "is_causal", True):
        return "its attention looks ahead"
    if getattr(config, "attention_chunk_size", None):
        return "its attention is cut into chunks"
    if others := sorted(set(getattr(config, "layer_types", None) or ()) - _KINDS):
        return f"it has layers of the kind {others[0]}"
    return None


class OwnLayers(torch.nn.Module):
    """A decoder without its head, over one packed row, by its own layers.

    Its attention is Rondo's until ``release``.
    """

    def __init__(self, decoder: Any, checkpointing: bool = False) -> None:
        super().__init__()
        self.decoder = decoder
        self._before = decoder.config._attn_implementation
        self._checkpointing = checkpointing
        if checkpointing:
            decoder.gradient_checkpointing_enable({"use_reentrant": False})
        decoder.set_attn_implementation(NAME)

    def release(self) -> None:
        """Restore the model's own forward pass; more than once does no harm."""
        if self._checkpointing:
            self.decoder.gradient_checkpointing_disable()
        self.decoder.set_attn_implementation(self._before)

    def forward(self, ids: Tensor, positions: Tensor, segments: Segments, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """As that of :class:`stages.core.forward.decoder.PackedDecoder`.

        Raises:
            NotPackable: a layer does something that a packed row cannot have.
        """
        token = _segments.set(segments)
        try:
            with rows_are_known(), torch.autocast(ids.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                states: Tensor = self.decoder(
                    input_ids=ids[None], position_ids=positions[None], use_cache=False
                ).last_hidden_state
        finally:
            _segments.reset(token)
        return states[0][rows].to(dtype)


def _mask(*_: Any, local_size: int | None = None, use_vmap: bool = False, **about: Any) -> _Seen:
    """In the place of transformers' masks: asked for once for each kind of layer."""
    if use_vmap or "allow_is_bidirectional_skip" in about:
        raise NotPackable("its attention sees more than what came before")
    return _Seen(_segments.get(), local_size)


def _attend(
    _: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **__: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: [1, heads, tokens, dim] in, [1, tokens, heads, value dim] out."""
    if not isinstance(attention_mask, _Seen):
        raise NotPackable("its attention makes masks of its own")
    if position_bias is not None:
        raise NotPackable("its attention adds biases to the scores")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if torch.is_autocast_enabled(q.device.type):
        q, k, v = (x.to(torch.get_autocast_dtype(q.device.type)) for x in (q, k, v))
    variant = Variant(scaling, attention_mask.window, softcap, s_aux)
    return segmented_attention(q, k, v, attention_mask.segments, variant)[None], None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _mask)
