"""What judging has spent, and whether it may spend more."""

from __future__ import annotations

from dataclasses import dataclass

from stages.base import StageError
from stages.judge.judges.llm.config import Budget
from stages.judge.judges.llm.kept import Reply


@dataclass
class Purse:
    """Counts what the replies took that were paid by one step, those before it was killed among them."""

    budget: Budget
    step: str
    """Its fingerprint."""
    tokens: int = 0
    cost: float = 0.0

    def pay(self, reply: Reply) -> None:
        if reply.paid_by == self.step:
            self.tokens += reply.input_tokens + reply.output_tokens
            self.cost += reply.cost

    def check(self) -> None:
        """Raises:
        StageError: all is spent.
        """
        for name, spent in (("tokens", self.tokens), ("cost", self.cost)):
            most = getattr(self.budget, name)
            if most is not None and spent >= most:
                raise StageError(
                    f"budget.{name} {most:g} of the language model is spent ({spent:g}). What it has said is kept: "
                    f"raise it, and the same command goes on from here"
                )
