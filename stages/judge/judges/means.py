"""What judges are given besides their configuration, and how a language model is asked with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.generate import serving
from stages.io.artifact import Artifact
from stages.io.store import Store
from stages.judge.judges.llm.config import LlmConfig

if TYPE_CHECKING:
    from stages.judge.judges.llm.asker import Answerer, Asker
    from stages.judge.judges.llm.kept import Reply


@dataclass(frozen=True)
class Means:
    """What a judge may use besides its configuration: the store, what its step (a fingerprint) has spent before, the
    model that its configuration names, and the GPUs for it."""

    store: Store
    step: str
    tokens: int = 0
    cost: float = 0.0
    model: Artifact | None = None
    gpus: float = 0
    reference: Artifact | None = None
    """The second model that its configuration names."""


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
    return Asker(answerer, Kept(means.store, asked), Purse(config.budget, means.step, means.tokens, means.cost), read)


_WHO = frozenset(LlmConfig.model_fields)
"""Settings that say who is asked; what is asked stands in the question."""


def environment(config: object, gpu: bool) -> dict[str, str]:
    """Environment that the process of a judge has to start with."""
    if isinstance(config, LlmConfig) and config.model is not None:
        return serving.environment(config.sampling, gpu)
    return {}
