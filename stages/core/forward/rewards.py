"""Rewards of whole responses under a decoder with a scalar head, in the place of log-probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from stages.core.forward.head import Weigh
from stages.core.forward.logprobs import ResponseLogprobs, Scored
from stages.core.forward.packing import Batch


class ResponseRewards(ResponseLogprobs):
    """A sequence-classification model whose forward pass gives every response its reward: the head's one number at the
    response's last token, float32. Rewards take the place of log-probabilities in ``Scored``, so that a training
    differentiates them in the same way; that of a missing response is 0, and there are no confidences."""

    def forward(self, batch: Batch, weigh: Weigh | None = None, confident: bool = False) -> Scored:  # noqa: ARG002 - as the class above
        sequences, last = last_rows(batch)
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


def last_rows(batch: Batch) -> tuple[Tensor, Tensor]:
    """The sequences that have a response, and where in the flattened ``ids`` the last token of each stands; int64.

    The token before a response's last is known (``rows``), and the last comes right behind it. Only a response of one
    token that stands second behind a shared prompt does not: it comes behind the first response.
    """
    sequences, counts = torch.unique_consecutive(batch.sequences, return_counts=True)
    ends = counts.cumsum(0) - 1
    last = batch.rows[ends] + 1
    if batch.segments is not None:
        shared = {
            2 * pair + 1: segment.start + segment.prompt + segment.chosen
            for pair, segment in enumerate(batch.segments)
            if segment.rejected == 1
        }
        for place, sequence in enumerate(sequences.tolist()):
            if counts[place] == 1 and sequence in shared:
                last[place] = shared[sequence]
    return sequences, last
