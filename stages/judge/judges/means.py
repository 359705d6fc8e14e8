"""What judges are given besides their configuration, and how a language model is asked with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.generate import serving
from stages.io.artifact import Artifact
from stages.io.output import Output, add_up
from stages.judge.judges.llm.config import LlmConfig

if TYPE_CHECKING:
    from stages.judge.judges.llm.asker import Answerer, Asker
    from stages.judge.judges.llm.kept import Reply


@dataclass(frozen=True)
class Means:
    """What a judge may use besides its configuration: the output of its step, the models that its configuration names,
    and the GPUs for them."""

    output: Output
    model: Artifact | None = None
    reference: Artifact | None = None
    gpus: float = 0

    def spent(self) -> tuple[int, float]:
        """Tokens and money that the finished parts have cost. Asked for by each process: one may follow another."""
        counts = add_up(part.counts for part in self.output.done().values())
        return counts.get("paid_tokens", 0), counts.get("paid_cost", 0.0)


def asker(config: LlmConfig, means: Means, read: Callable[[Reply], object]) -> Asker:
    """Asks the language model that a configuration names; ``read`` raises a ValueError for nonsense.

    Raises:
        StageError: it cannot be asked from here, such as without its key.
    """
    from stages.judge.judges.llm.asker import Asker
    from stages.judge.judges.llm.kept import Kept
    from stages.judge.judges.llm.purse import Purse

    asked: dict[str, Any] = {name: value for name, value in config.identity().items() if name in _WHO}
    answerer: Answerer
    if config.endpoint is not None:
        from stages.judge.judges.llm.endpoint import Endpoint

        answerer = Endpoint(config, config.endpoint)
    else:
        from stages.judge.judges.llm.served import Served

        assert means.model is not None
        answerer = Served(config, means.model, means.gpus)
        asked["model"] = means.model.fingerprint
    purse = Purse(config.budget, means.output.fingerprint, *means.spent())
    return Asker(answerer, Kept(means.output.store, asked), purse, read)


_WHO = frozenset(LlmConfig.model_fields) - {"max_tokens", "max_length"}
"""Settings that say who is asked. What is asked stands in the question, and replies that were cut are not kept."""


def environment(config: object, gpu: bool) -> dict[str, str]:
    """Environment that the process of a judge has to start with."""
    if isinstance(config, LlmConfig) and config.model is not None:
        return serving.environment(config.sampling, gpu)
    return {}
