"""The forward pass of Llama-like decoders over packed rows: no padding, shared prompts computed once.

Covers Llama (SmolLM and kin among them), Mistral, Qwen 2 and 3, where :mod:`stages.core.forward.own_layers` covers
all others: no passes over memory are made here that a fused rule can do without. The weights
stay in the Hugging Face modules, adapters included; only the path through them is Rondo's.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stages.core.forward.attention import segmented_attention
from stages.core.forward.config import LLAMA_LIKE
from stages.core.forward.fused import add_norm, low_rank, rotate, swiglu
from stages.core.forward.segments import Segments

_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_DECODER = {"embed_tokens", "layers", "norm", "rotary_emb"}


def is_llama_like(decoder: Any) -> bool:
    """Whether a decoder is of a family that :class:`PackedDecoder` handles, and consists of exactly its parts."""
    config = decoder.config
    if config.model_type not in LLAMA_LIKE or _parts(decoder) != _DECODER or config.hidden_act != "silu":
        return False
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return False
    return all(
        _parts(layer) == _LAYER
        and _parts(layer.self_attn) - {"q_norm", "k_norm"} == _ATTENTION - {"q_norm", "k_norm"}
        and _parts(layer.mlp) == _MLP
        for layer in decoder.layers
    )


def _parts(module: Any) -> set[str]:
    return {name for name, _ in module.named_children()}


class PackedDecoder(torch.nn.Module):
    """A decoder without its head, over one packed row.

    The layers of ``decoder`` get this class's forward pass in place of their own.
    """

    def __init__(self, decoder: Any, checkpointing: bool = False) -> None:
        super().__init__()
        self.decoder = decoder
        self.checkpointing = checkpointing
        for layer in decoder.layers:
            layer.forward = partial(_layer, layer)

    def release(self) -> None:
        """Restore the layers' own forward pass; more than once does no harm."""
        for layer in self.decoder.layers:
            vars(layer).pop("forward", None)

    def forward(self, ids: Tensor, positions: Tensor, segments: Segments, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """The final normalised hidden states of some rows.

        Args:
            ids, positions: int64 [tokens].
            segments: the sequences in the row, see :mod:`stages.core.forward.segments`.
            rows: int64 [wanted], positions in the packed row.
            dtype: precision of the matrix products.

        Returns:
            ``dtype`` [wanted, width].
        """
        hidden = self.decoder.embed_tokens(ids).float()
        cos, sin = self.decoder.rotary_emb(hidden[None], position_ids=positions[None])
        half = cos.shape[-1] // 2
        angles = (cos[0, :, None, :half].contiguous(), sin[0, :, None, :half].contiguous())
        update = None
        for layer in self.decoder.layers:
            if self.checkpointing and torch.is_grad_enabled():
                hidden, update = checkpoint(layer, hidden, update, angles, segments, dtype, use_reentrant=False)
            else:
                hidden, update = layer(hidden, update, angles, segments, dtype)
        norm = self.decoder.norm
        picked = update[rows] if update is not None else None
        _, normal = add_norm(hidden[rows], picked, norm.weight, norm.variance_epsilon, dtype)
        return normal


def _layer(
    layer: Any,
    hidden: Tensor,
    update: Tensor | None,
    angles: tuple[Tensor, Tensor],
    segments: Segments,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """One decoder layer; ``update`` is what the previous layer has yet to add to the residual stream."""
    first, second = layer.input_layernorm, layer.post_attention_layernorm
    hidden, x = add_norm(hidden, update, first.weight, first.variance_epsilon, dtype)
    update = _attention(layer.self_attn, x, angles, segments)
    hidden, x = add_norm(hidden, update, second.weight, second.variance_epsilon, dtype)
    mlp = layer.mlp
    return hidden, _linear(mlp.down_proj, swiglu(_linear(mlp.gate_proj, x), _linear(mlp.up_proj, x)))


def _attention(part: Any, x: Tensor, angles: tuple[Tensor, Tensor], segments: Segments) -> Tensor:
    q, k, v = (
        _linear(projection, x).view(len(x), -1, part.head_dim) for projection in (part.q_proj, part.k_proj, part.v_proj)
    )
    if hasattr(part, "q_norm"):
        q, k = part.q_norm(q).to(x.dtype), part.k_norm(k).to(x.dtype)  # their weights are float32
    q, k = rotate(q, *angles), rotate(k, *angles)
    mixed = segmented_attention(q, k, v, segments)
    return _linear(part.o_proj, mixed.reshape(len(x), -1))


def _linear(module: Any, x: Tensor) -> Tensor:
    """A linear layer in the precision of ``x``, whatever adapter it carries."""
    if type(module) is torch.nn.Linear:
        bias = None if module.bias is None else module.bias.to(x.dtype)
        return F.linear(x, module.weight.to(x.dtype), bias)
    if (name := _plain_lora(module)) is not None:
        return low_rank(
            x, module.base_layer.weight.to(x.dtype), module.lora_A[name].weight, module.lora_B[name].weight,
            module.scaling[name],
        )  # fmt: skip
    with torch.autocast(x.device.type, torch.bfloat16, enabled=x.dtype == torch.bfloat16):
        out: Tensor = module(x)
    return out.to(x.dtype)


def _plain_lora(module: Any) -> str | None:
    """The name of a linear layer's only adapter, if that is a plain low-rank update."""
    active = getattr(module, "active_adapters", [])
    if len(active) != 1 or not hasattr(module, "lora_A") or module.disable_adapters or module.merged:
        return None
    name: str = active[0]
    plain = (
        type(module.base_layer) is torch.nn.Linear
        and module.base_layer.bias is None
        and name in module.lora_A
        and name not in getattr(module, "lora_variant", {})
        and module.lora_B[name].bias is None
        and isinstance(module.lora_dropout[name], torch.nn.Identity)
    )
    return name if plain else None
