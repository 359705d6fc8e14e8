"""A model that scores responses, held by a worker."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stages.base import StageError
from stages.core.forward.layout import agrees, choose_layout
from stages.core.forward.logprobs import ResponseLogprobs, freeze
from stages.core.forward.packing import collate, in_order, micro_batches
from stages.core.tokens.pair import EncodedPair
from stages.io.artifact import Artifact
from stages.policy.load import device_of_worker, load_model, load_policy, product_precision
from stages.score.config import ReferenceConfig, tokens_of_pass


class ScoringModel:
    """A frozen policy on this worker's device."""

    def __init__(self, config: ReferenceConfig, policy: Artifact) -> None:
        self.device = device_of_worker()
        precision = product_precision(config.precision, self.device)
        if config.quantization is None:
            model = load_policy(policy.folder(), self.device, frozen=precision).eval()
        else:
            model = load_model(policy.folder(), self.device, config.quantization, config.precision).eval()
        self.layout = choose_layout(model, config.layout)
        if config.quantization is None and not agrees(model, self.layout):
            raise StageError(
                f"{type(model).__name__} treats its attention or its logits in a way that Rondo does not know; "
                "try train.layout: padded"
            )
        frozen = freeze(model.requires_grad_(False), precision)
        self.model = ResponseLogprobs(frozen, self.layout, precision)

    @torch.no_grad()
    def score(self, pairs: Sequence[EncodedPair]) -> Tensor:
        """Log-probabilities of chosen and rejected responses, float32 [pairs, 2]."""
        groups = micro_batches(pairs, self.layout, tokens_of_pass(self.device.type == "cuda"))
        batches = (collate([pairs[i] for i in group], self.layout).to(self.device) for group in groups)
        return in_order(groups, [self.model(batch).logprobs for batch in batches])
