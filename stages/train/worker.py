"""One training worker: its place among the others, and the pairs that it reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from stages.core.tokens.pair import EncodedPair


class PairData(Protocol):
    """Random access to encoded pairs and their reference log-probabilities."""

    def __len__(self) -> int: ...

    def pairs(self, indices: Sequence[int]) -> list[EncodedPair]: ...

    def reference(self, indices: Sequence[int]) -> Tensor:
        """float32 [3, len(indices)]: of the chosen response, of the rejected one (0 where it is missing), and of the
        mismatched one."""
        ...

    def mismatched(self, indices: Sequence[int]) -> list[EncodedPair]:
        """The prompts with an answer to another prompt each, as ``chosen``; the rejected response is missing.
        Nothing where there is no other prompt."""
        ...


@dataclass(frozen=True)
class Worker:
    """This worker's place among the others. ``all_sum`` adds a tensor up over all of them. In ``lockstep`` all make
    the same number of forward passes, which sharded weights need: every one of these is a collective."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    micro_batch_tokens: int = 2048
    all_sum: Callable[[Tensor], Tensor] = lambda value: value
    lockstep: bool = False
