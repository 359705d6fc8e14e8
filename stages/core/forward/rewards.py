"""Rewards of whole responses under a decoder with a scalar head, in the place of log-probabilities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stages.core.forward.config import LayoutChoice
from stages.core.forward.decoder import is_llama_like
from stages.core.forward.head import Weigh
from stages.core.forward.logprobs import ResponseLogprobs, Scored, decoder_of
from stages.core.forward.packing import Batch, Layout, collate
from stages.core.tokens.pair import EncodedPair


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


def choose_layout(model: Any, wanted: LayoutChoice) -> Layout:
    """As for policies: on a GPU ``padded``; elsewhere ``shared`` for decoders like Llama's if it gives what the model's
    own forward pass gives."""
    if wanted != "auto":
        return wanted
    packs = not torch.cuda.is_available() and is_llama_like(decoder_of(model))
    return "shared" if packs and _agrees(model, "shared") else "padded"


@torch.no_grad()
def _agrees(model: Any, layout: Layout) -> bool:
    """Whether rewards are those of the model's own decoder on a few tokens, under a head that tells them apart."""
    device = next(model.parameters()).device
    ids = [index % model.config.get_text_config().vocab_size for index in range(3, 25)]
    pair = EncodedPair("probe", ids[:8], ids[8:20], ids[5:12])
    scorer = ResponseRewards(model, layout, "fp32")
    batch = collate([pair], layout).to(device)
    _, last = last_rows(batch)
    assert scorer.packed is not None
    assert batch.segments is not None
    own = scorer.packed(batch.ids, batch.positions, batch.segments, last, torch.float32)
    scorer.release()
    responses = (pair.chosen_ids, pair.rejected_ids)
    expected = [
        decoder_of(model)(input_ids=torch.tensor([pair.prompt_ids + ids], device=device)).last_hidden_state[0, -1]
        for ids in responses
    ]
    return bool(torch.allclose(own, torch.stack(expected), rtol=1e-3, atol=1e-2))
