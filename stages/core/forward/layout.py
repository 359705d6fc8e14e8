"""Which layout a model is run in, and whether what comes out is what the model's own forward pass gives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stages.base import StageError
from stages.core.forward.config import KNOWN, LayoutChoice
from stages.core.forward.decoder import is_llama_like
from stages.core.forward.logprobs import ResponseLogprobs, decoder_of, packed_decoder
from stages.core.forward.own_layers import NotPackable, obstacle
from stages.core.forward.packing import Batch, Layout, collate
from stages.core.forward.virtual_tokens import is_prompt_learning
from stages.core.tokens.pair import EncodedPair

_EXACT, _ROUNDING = 1e-3, 0.05
"""Of the size of what is compared: with products in float32 and in bfloat16."""


def choose_layout(model: Any, wanted: LayoutChoice, filled: bool = True) -> Layout:
    """The layout to use: the wanted one, or with ``auto`` the best that the model can be run in. On a GPU that is
    ``padded``: the packed ones have not been measured there. What is known of a model's family has to do where it is
    not ``filled``, having no weights yet, and where its linear layers are in bfloat16, whose rounding would hide what
    a trial is to show: so one model gets one layout, frozen or in training.

    Raises:
        StageError: the model cannot be run in the wanted layout.
    """
    if wanted == "padded" or (wanted == "auto" and torch.cuda.is_available()):
        return "padded"
    exact = filled and _products(model) == torch.float32
    why = why_padded(model) if exact or is_prompt_learning(model) else _unknown(model)
    if why is None:
        return "shared" if wanted == "auto" else wanted
    if wanted == "auto":
        return "padded"
    raise StageError(f"train.layout: {wanted} is not for {type(model).__name__}: {why}; use auto, which pads its rows")


def _unknown(model: Any) -> str | None:
    """What keeps a model from packed rows as far as is known without running it."""
    decoder = decoder_of(model)
    if is_llama_like(decoder):
        return None
    if (why := obstacle(decoder)) is not None:
        return why
    return None if decoder.config.model_type in KNOWN else "its family is not known to give the same in them"


@torch.no_grad()
def why_padded(model: Any) -> str | None:
    """What keeps a model from packed rows, or None: what they give for a few tokens is what its own forward pass gives.

    A family that treats its attention or its positions in its own way is found here and not by a wrong loss.
    """
    if is_prompt_learning(model):
        return "its virtual tokens come before every sequence"
    decoder = decoder_of(model)
    if not is_llama_like(decoder) and (why := obstacle(decoder)) is not None:
        return why
    batch = collate(_probes(model), "shared").to(next(model.parameters()).device)
    assert batch.segments is not None
    expected = torch.cat([_own(decoder, batch, sequence) for sequence in range(2 * batch.pairs)]).float()
    packed = packed_decoder(decoder)
    try:
        found: Tensor = packed(batch.ids, batch.positions, batch.segments, batch.rows, torch.float32)
    except (NotPackable, TypeError, ValueError, AttributeError, LookupError, RuntimeError) as error:
        return str(error).strip().splitlines()[0] if isinstance(error, NotPackable) else f"it refuses them ({error})"
    finally:
        packed.release()
    off = float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max())
    return (
        None if off < _EXACT else "what it makes of a token depends on more than the tokens that attention lets it see"
    )


def _products(model: Any) -> torch.dtype:
    """The precision of a model's products: of one that is frozen, linear layers may be stored in it."""
    linear = [module for module in model.modules() if type(module) is torch.nn.Linear]
    return torch.bfloat16 if any(module.weight.dtype == torch.bfloat16 for module in linear) else torch.float32


def _autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def _probes(model: Any) -> list[EncodedPair]:
    """Two pairs, so that what leaks from one into the other is seen."""
    size = model.config.get_text_config().vocab_size
    ids = [index % size for index in range(3, 45)]
    return [EncodedPair("probe", ids[:8], ids[8:20], ids[5:12]), EncodedPair("probe", ids[9:22], ids[30:41], ids[2:9])]


def _own(decoder: Any, batch: Batch, sequence: int) -> Tensor:
    """What the decoder makes of one of the batch's sequences alone, [response tokens, width]."""
    assert batch.segments is not None
    segment = batch.segments[sequence // 2]
    prompt = torch.arange(segment.start, segment.start + segment.prompt)
    first = segment.start + segment.prompt + (segment.chosen if sequence % 2 else 0)
    count = segment.rejected if sequence % 2 else segment.chosen
    ids = batch.ids[torch.cat([prompt, torch.arange(first, first + count)]).to(batch.ids.device)]
    states: Tensor = decoder(input_ids=ids[None], use_cache=False).last_hidden_state
    return states[0, segment.prompt - 1 : -1]


@torch.no_grad()
def agrees(model: Any, layout: Layout) -> bool:
    """Whether :class:`ResponseLogprobs` gives what the model's own logits give, on a few tokens: a family that treats
    its logits in its own way is found here."""
    device, dtype = next(model.parameters()).device, _products(model)
    pair = _probes(model)[0]
    expected = []
    for response in (pair.chosen_ids, pair.rejected_ids):
        tokens = torch.tensor([pair.prompt_ids + response], device=device)
        with _autocast(device, dtype):
            logits = model(input_ids=tokens).logits[0, -tokens.shape[1] :]  # virtual tokens may come first
        logged = torch.log_softmax(logits.float(), -1)[:-1]
        expected.append(logged.gather(1, tokens[0, 1:, None])[len(pair.prompt_ids) - 1 :].sum())
    rounded = dtype == torch.bfloat16
    scorer = ResponseLogprobs(model, layout, "bf16" if rounded else "fp32")
    try:
        own = scorer(collate([pair], layout).to(device)).logprobs
    finally:
        scorer.release()
    relative, absolute = (_ROUNDING, 1.0) if rounded else (_EXACT, 1e-2)
    return bool(torch.allclose(own, torch.stack(expected), relative, absolute))
