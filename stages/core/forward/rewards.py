"""Rewards of whole responses under a decoder with a scalar head, in the place of log-probabilities."""

from __future__ import annotations

import torch

from stages.core.forward.head import Weigh
from stages.core.forward.logprobs import ResponseLogprobs, Scored
from stages.core.forward.packing import Batch


class ResponseRewards(ResponseLogprobs):
    """A sequence-classification model whose forward pass gives every response its reward: the head's one number at the
    response's last token, float32. Rewards take the place of log-probabilities in ``Scored``, so that a training
    differentiates them in the same way; that of a missing response is 0, and there are no confidences."""

    def forward(self, batch: Batch, weigh: Weigh | None = None, confident: bool = False) -> Scored:  # noqa: ARG002 - as the class above
        sequences, last = batch.answered, batch.ends
        if self.packed is None:
            hidden = self._padded(batch).flatten(0, 1)[last]
        else:
            assert batch.segments is not None
            hidden = self.packed(batch.ids, batch.positions, batch.segments, last, self.dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            scores = self.model.score(hidden.float())[:, 0]
        zeros = torch.zeros(2 * batch.pairs, dtype=torch.float32, device=scores.device)
        rewards = zeros.index_add(0, sequences, scores)
        if weigh is None:
            return Scored(zeros.sum(), rewards.detach(), zeros)
        slopes = weigh(0, batch.pairs, rewards.detach(), zeros)
        return Scored((slopes * rewards).sum(), rewards.detach(), zeros)
