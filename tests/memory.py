"""Training data held in memory, for the training loop: a small real implementation of ``PairData``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from stages.core.forward.logprobs import ResponseLogprobs
from stages.core.forward.packing import Layout, collate
from stages.core.tokens.pair import EncodedPair, mismatched

# Matrices of the tests' size are far slower on several threads, and very much slower on a busy machine.
torch.set_num_threads(1)

_FIRST_BYTE = 3
_TOKENS = 259


def encoded(prompt: Sequence[int], chosen: Sequence[int], rejected: Sequence[int], p: float = 1.0) -> EncodedPair:
    """A pair whose response tokens all count."""
    return EncodedPair(
        pair_id="-".join(map(str, [*prompt, 0, *chosen, 0, *rejected])),
        prompt_ids=list(prompt),
        chosen_ids=list(chosen),
        rejected_ids=list(rejected),
        probability=p,
    )


def random_pairs(count: int, seed: int = 0, longest: int = 20) -> list[EncodedPair]:
    """Pairs of random byte tokens of ``tests.tiny``, of many different lengths."""
    generator = np.random.default_rng(seed)

    def ids() -> list[int]:
        return generator.integers(_FIRST_BYTE, _TOKENS, generator.integers(2, longest)).tolist()

    return [encoded(ids(), ids(), ids()) for _ in range(count)]


@torch.no_grad()
def score(model: torch.nn.Module, pairs: Sequence[EncodedPair], layout: Layout, precision: str) -> Tensor:
    """Log-probabilities of chosen and rejected responses, float32 [pairs, 2], one pair at a time."""
    scorer = ResponseLogprobs(model, layout, precision)
    values = torch.stack([scorer(collate([pair], layout)).logprobs for pair in pairs])
    scorer.release()
    return values


@dataclass
class MemoryData:
    """Pairs and, once scored, their reference log-probabilities."""

    items: list[EncodedPair]
    logprobs: Tensor = field(default_factory=lambda: torch.zeros(3, 0))

    def scored_by(self, model: torch.nn.Module, layout: Layout = "shared", precision: str = "fp32") -> MemoryData:
        """The same pairs with a model's log-probabilities, one pair at a time, as reference."""
        own = score(model, self.items, layout, precision)
        other = score(model, self.mismatched(range(len(self))), layout, precision)
        return MemoryData(self.items, torch.stack([own[:, 0], own[:, 1], other[:, 0]]))

    def __len__(self) -> int:
        return len(self.items)

    def pairs(self, indices: Sequence[int]) -> list[EncodedPair]:
        return [self.items[index] for index in indices]

    def reference(self, indices: Sequence[int]) -> Tensor:
        return self.logprobs[:, list(indices)]

    def mismatched(self, indices: Sequence[int]) -> list[EncodedPair]:
        return [mismatched(self.items[index], self.items[(index + 1) % len(self)]) for index in indices]
