"""A language model behind an address: asked at the same time, again after a pause, and not faster than allowed."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import openai
from aiolimiter import AsyncLimiter

from stages.base import StageError
from stages.judge.judges.llm.config import EndpointConfig, LlmConfig
from stages.judge.judges.llm.kept import CutOff, Question, Reply, Unanswered

_DOWN = 8
"""Questions in a row, beyond those under way, that get no connection before the others are not tried."""
_REFUSED = (401, 403, 404)
"""What a server says when no question will ever be answered: a wrong key, or no such model."""

Accept = Callable[[int, Reply], None]
"""Called with the place of a question and each reply to it. Raises a ValueError if that makes no sense: then the
question is asked again."""


class Endpoint:
    """Asks an OpenAI-compatible server; pauses grow from one attempt to the next as the server asks for, or double."""

    def __init__(self, config: LlmConfig, server: EndpointConfig) -> None:
        self._config, self._server = config, server
        self._key = _key(self._server)
        self._loop = asyncio.Runner()
        self._client = openai.AsyncOpenAI(
            base_url=self._server.url, api_key=self._key or "none", timeout=self._server.timeout,
            max_retries=self._server.attempts - 1, organization="", project="",
        )  # fmt: skip
        rate = self._server.requests_per_minute
        self._limit = AsyncLimiter(1, 60 / rate) if rate else None
        self._lost = 0
        """Questions without a connection since the last that had one."""

    def ask(self, questions: Sequence[Question], accept: Accept, check: Callable[[], None]) -> list[Unanswered | None]:
        """Ask all; ``accept`` takes the replies as they come, in any thread. ``check`` is called before each question.
        Returns for each why there is no reply, or None.

        Raises:
            StageError: the server refuses the key or knows no such model, or ``check`` gave one.
        """
        return self._loop.run(self._all(questions, accept, check))

    def close(self) -> None:
        self._loop.run(self._client.close())
        self._loop.close()

    async def _all(
        self, questions: Sequence[Question], accept: Accept, check: Callable[[], None]
    ) -> list[Unanswered | None]:
        places = asyncio.Semaphore(self._server.concurrency)

        async def one(number: int, question: Question) -> Unanswered | None:
            async with places:
                check()
                return await self._one(question, partial(accept, number))

        try:
            async with asyncio.TaskGroup() as group:
                asked = [group.create_task(one(*each)) for each in enumerate(questions)]
        except* StageError as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in asked]

    async def _one(self, question: Question, accept: Callable[[Reply], None]) -> Unanswered | None:
        """Ask once, and again if the reply makes no sense."""
        if self._lost >= self._server.concurrency + _DOWN:
            return Unanswered(f"not asked: {self._lost} questions before it got no answer from {self._name}", True)
        why = ""
        for _ in range(self._server.attempts):
            try:
                reply = await self._reply(question)
                self._lost = 0
                await asyncio.to_thread(accept, reply)  # it writes, to a bucket perhaps
                return None
            except CutOff as error:
                return Unanswered(f"{self._name}: {error}")
            except openai.APIStatusError as error:
                return self._status(error)
            except openai.APIConnectionError as error:
                self._lost += 1
                return Unanswered(f"{self._name} does not answer: {_cause(error)}", passing=True)
            except ValueError as error:
                why = str(error)
        return Unanswered(f"{self._name}: {self._hidden(why)}")

    @property
    def _name(self) -> str:
        return f"{self._server.model} at {self._server.url}"

    async def _reply(self, question: Question) -> Reply:
        """Raises:
        ValueError: it is not what a server of this kind says.
        """
        if self._limit is not None:
            await self._limit.acquire()
        began = time.monotonic()
        said = await self._client.chat.completions.create(**self._request(question))
        seconds = time.monotonic() - began
        choices = getattr(said, "choices", None)  # a proxy's page of HTML has none
        if not choices or choices[0].message is None:
            raise ValueError(f"nonsense instead of a completion: {said!r:.120}")
        usage, price = said.usage, self._server.price
        asked, answered = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        cost = (asked * price.input + answered * price.output) / 1e6 if price else 0.0
        text, cut = choices[0].message.content or "", choices[0].finish_reason == "length"
        return Reply(text, asked, answered, cost, seconds, cut=cut)

    def _request(self, question: Question) -> dict[str, Any]:
        """A chat completion, in the form that all servers know."""
        form: dict[str, Any] = {}
        if self._server.structured == "json_schema":
            schema = {"name": "verdict", "strict": True, "schema": dict(question.schema)}
            form = {"response_format": {"type": "json_schema", "json_schema": schema}}
        elif self._server.structured == "json_object":
            form = {"response_format": {"type": "json_object"}}
        settings = {"temperature": self._config.temperature, "max_tokens": self._config.max_tokens, **form}
        if "max_completion_tokens" in self._server.extra:  # what newer models of OpenAI call it, and only know
            del settings["max_tokens"]
        settings |= self._server.extra
        return {
            "model": self._server.model,
            "messages": [{"role": "user", "content": question.text}],
            "extra_body": {name: value for name, value in settings.items() if value is not None},
        }

    def _status(self, error: openai.APIStatusError) -> Unanswered:
        """What a server's refusal means.

        Raises:
            StageError: it will refuse every question.
        """
        status, said = error.status_code, self._hidden(" ".join(error.message.split()))
        if status in _REFUSED:
            where = "endpoint.url and model" if status == 404 else "endpoint.key_env"
            raise StageError(f"language model: {self._name} refuses with status {status} (see {where}): {said:.200}")
        passing = status in (408, 409, 429) or status >= 500
        return Unanswered(f"{self._name} answers with status {status}: {said:.200}", passing)

    def _hidden(self, text: str) -> str:
        """Without the key, should a server repeat it."""
        return text.replace(self._key, "[key]") if self._key else text


def _key(server: EndpointConfig) -> str:
    if server.key_env is None:
        return ""
    if not (key := os.environ.get(server.key_env, "").strip()):
        raise StageError(
            f"language model: endpoint.key_env names {server.key_env}, which is not set in the environment of the "
            "machine that judges"
        )
    return key


def _cause(error: openai.APIConnectionError) -> str:
    if isinstance(error, openai.APITimeoutError):
        return "no answer in time (endpoint.timeout)"
    cause = error.__cause__
    return f"{type(cause).__name__}: {cause}" if cause is not None else str(error)
