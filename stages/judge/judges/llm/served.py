"""A language model that vLLM serves in the judge's own process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from stages.core.errors import RowError
from stages.generate import engines
from stages.generate.engine import Engine, Sample
from stages.generate.serving import weights_for
from stages.io.artifact import Artifact
from stages.io.parts import assigned_cpus
from stages.judge.judges.llm.config import LlmConfig
from stages.judge.judges.llm.kept import Question, Reply, Unanswered
from stages.policy.load import load_encoder


class Served:
    """Answers follow the schema, since vLLM lets the model say nothing else. A weak model may never come to the end of
    its reason: a limit in the schema would see to that, but a grammar with one took 20 s to compile."""

    def __init__(self, config: LlmConfig, model: Artifact, gpus: float) -> None:
        self._config, self._sampling = config, config.sampling
        weights = weights_for(model, None)
        self._encoder = load_encoder(weights.model)
        self._weights, self._gpus = weights, gpus
        self._engine: Engine | None = None

    def ask(
        self, questions: Sequence[Question], accept: Callable[[int, Reply], None], check: Callable[[], None]
    ) -> list[Unanswered | None]:
        """Ask all, as many at a time as the engine has room for. A model asked again would say the same: it is not.

        Raises:
            StageError: ``check`` gave one.
        """
        if self._engine is None:  # all questions of a step have one schema
            schema = questions[0].schema
            self._engine = engines.make(self._sampling, self._weights, assigned_cpus(), self._gpus, schema)
        why: list[Unanswered | None] = [None] * len(questions)
        asked: dict[int, tuple[int, float]] = {}
        waiting = list(enumerate(questions))[::-1]
        while waiting or asked:
            while waiting and len(asked) < self._engine.room:
                check()
                number, question = waiting.pop()
                try:
                    prompt = self._prompt(question)
                except RowError as error:
                    why[number] = Unanswered(f"the question cannot be asked: {error.reason}")
                    continue
                asked[number] = len(prompt), time.monotonic()
                self._engine.add(number, prompt)
            for number, (sample,) in self._engine.step():
                tokens, began = asked.pop(number)
                try:
                    accept(number, self._reply(sample, tokens, time.monotonic() - began))
                except ValueError as error:
                    why[number] = Unanswered(f"the judge's model: {error}")
        return why

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()

    def _prompt(self, question: Question) -> list[int]:
        ids = self._encoder.prompt([{"role": "user", "content": question.text}])
        room = self._sampling.max_length - self._sampling.max_tokens
        if len(ids) > room:
            raise RowError("prompt", f"longer than {room} tokens (max_length less max_tokens)")
        return ids

    def _reply(self, sample: Sample, tokens: int, seconds: float) -> Reply:
        text = self._encoder.tokenizer.decode(sample.token_ids, skip_special_tokens=True)
        cut = sample.finish_reason == "length"
        return Reply(text, tokens, len(sample.token_ids), seconds=seconds, cut=cut)
