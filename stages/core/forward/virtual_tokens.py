"""Models with trained virtual tokens (prefix and prompt tuning): their decoder alone is not the policy."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor


def is_prompt_learning(model: Any) -> bool:
    """Whether the model is a PeftModel that puts virtual tokens before each sequence."""
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))


def hidden_states(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Last hidden states, after the final norm, of the real tokens, with the virtual tokens before them.

    Runs the PeftModel's own forward pass and takes the input of its head. Gradients reach the virtual tokens.

    Args:
        model: a prompt-learning PeftModel for a causal language model.
        ids: int64 [sequences, length], padded on the right: a position follows from what is to its left.
        mask: [sequences, length], True or 1 for real tokens, False or 0 for padding.

    Returns:
        [sequences, length, hidden] in the decoder's precision; padding rows mean nothing.
    """
    base = model.get_base_model()
    taken: list[Tensor] = []
    hook = base.get_decoder().register_forward_hook(lambda _module, _inputs, output: taken.append(output[0]))
    # One position for the head, where the model can: its logits are not used.
    short = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(base.forward).parameters else {}
    try:
        model(input_ids=ids, attention_mask=mask.long(), use_cache=False, **short)
    finally:
        hook.remove()
    return taken[0][:, -ids.shape[1] :]
