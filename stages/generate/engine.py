"""What a generation engine is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stages.generate.config import RolloutConfig


@dataclass(frozen=True)
class Sample:
    token_ids: list[int]
    finish_reason: str
    """``stop`` or ``length``."""


class Engine(ABC):
    """Takes prompts as token ids and gives n samples for each. Prompts can be added while others are being answered, so
    that none waits for the longest answer of another."""

    room: int
    """The sequences that it works on at the same time; it is kept as full as that."""

    @abstractmethod
    def add(self, key: Any, prompt: Sequence[int]) -> None: ...

    @abstractmethod
    def step(self) -> list[tuple[Any, list[Sample]]]:
        """Go on with the prompts that were added; gives the keys and samples of those that are finished."""

    @abstractmethod
    def close(self) -> None:
        """Free what the engine holds; the process may serve another afterwards."""

    def generate(self, prompts: Sequence[Sequence[int]]) -> list[list[Sample]]:
        """The samples of every prompt."""
        answers: dict[Any, list[Sample]] = {}
        for key, prompt in enumerate(prompts):
            self.add(key, prompt)
        while len(answers) < len(prompts):
            answers |= self.step()
        return [answers[key] for key in range(len(prompts))]


def distinct(config: RolloutConfig) -> int:
    """How many of the samples of a prompt can differ: greedy ones are all the same, so one is computed."""
    return config.samples if config.temperature else 1
