"""What a step adds up over its pairs, kept where it is worked out: a card is not waited for before ``read``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stages.core.losses.inputs import LossInput, known
from stages.core.losses.objective import Outcome
from stages.core.metrics import BY_TASK, step_means
from stages.core.tokens.pair import EncodedPair
from stages.train.worker import Worker

_TOKENS = 7
_TASKS = 8


def columns_of(pairs: Sequence[EncodedPair], reference: Tensor, tasks: Sequence[str]) -> Tensor:
    """All numbers that a step needs of its pairs, float32 [8 + tasks, pairs], so that one transfer brings them to a
    card: the reference's three log-probabilities, what a loss takes from the pairs, their tokens, and for each task
    1 or 0."""
    tokens = torch.tensor([[2 * len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in pairs]])
    own = torch.tensor([[float(pair.task == task) for pair in pairs] for task in tasks]).view(-1, len(pairs))
    return torch.cat([reference, known(pairs), tokens.float(), own])


def reference_of(columns: Tensor) -> Tensor:
    """float32 [3, pairs]: of the chosen, the rejected and the mismatched response."""
    return columns[:3]


def known_of(columns: Tensor) -> Tensor:
    """As ``stages.core.losses.inputs.known``."""
    return columns[3:_TOKENS]


@dataclass
class Sums:
    """What a worker adds up over its pairs of a step. ``tasks`` are those of all its pairs, whoever has them: every
    worker adds up the same names."""

    reference: bool
    coupled: bool
    tasks: tuple[str, ...] = ()
    _names: list[str] = field(default_factory=list)
    _totals: Tensor | None = None
    """float64 [names]."""
    _seen: list[tuple[Sequence[EncodedPair], Tensor]] = field(default_factory=list)
    """Pairs, and [several, pairs] of what has to be finite."""

    def add(self, outcome: Outcome, x: LossInput, pairs: Sequence[EncodedPair], columns: Tensor, weight: float) -> None:
        margin = outcome.chosen_reward - outcome.rejected_reward
        chosen, rejected = x.chosen.detach(), x.rejected.detach()
        # On the training responses: the mean of log pi(y) - log ref(y), the plain (k1) estimate of the divergence.
        sides = (x.chosen_tokens > 0).float() + (x.rejected_tokens > 0).float()
        kl = ((chosen - x.ref_chosen) + (rejected - x.ref_rejected)) / sides
        measured = {
            "loss": outcome.losses.detach(),
            "reward_accuracy": (margin > 0).float(),
            "reward_margin": margin,
            "chosen_reward": outcome.chosen_reward,
            "rejected_reward": outcome.rejected_reward,
            "chosen_logp": chosen,
            "rejected_logp": rejected,
            **({"kl": kl} if self.reference else {}),
            **outcome.parts,
            "pairs": torch.ones_like(margin),
            "tokens": columns[_TOKENS],
        }
        for number, task in enumerate(self.tasks):
            own = columns[_TASKS + number]
            measured[f"task/{task}/pairs"] = own
            measured |= {f"task/{task}/{name}": measured[name] * own for name in BY_TASK}
        totals = weight * torch.stack(list(measured.values())).double().sum(1)
        self._names = list(measured)
        self._totals = totals if self._totals is None else self._totals + totals
        if weight:
            values = [chosen, rejected, x.ref_chosen, x.ref_rejected]
            # One pair can spoil another's loss where it is coupled.
            self._seen.append((pairs, torch.stack(values if self.coupled else [*values, measured["loss"]])))

    def over(self, worker: Worker) -> None:
        """Add the other workers' sums to these; all call it."""
        assert self._totals is not None
        self._totals = worker.all_sum(self._totals)

    def read(self, *others: Tensor) -> tuple[dict[str, float], list[float]]:
        """The step's metrics, and the values of other tensors of one element: all in one transfer."""
        assert self._totals is not None
        rest = [other.detach().double().view(1).to(self._totals.device) for other in others]
        values = torch.cat([self._totals, *rest]).cpu().tolist()
        count = len(self._names)
        return step_means(dict(zip(self._names, values[:count], strict=True))), values[count:]

    def bad(self) -> list[str]:
        """The names of this worker's pairs whose loss, or what it is made of, is not finite."""
        return [
            pair.name
            for pairs, values in self._seen
            for pair, good in zip(pairs, values.isfinite().all(0).tolist(), strict=True)
            if not good
        ]
