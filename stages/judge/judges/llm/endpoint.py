"""A language model behind an address: asked at the same time, again after a pause, and not faster than allowed."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

import openai
from aiolimiter import AsyncLimiter

from stages.base import StageError
from stages.judge.judges.llm.config import EndpointConfig, LlmConfig
from stages.judge.judges.llm.kept import CutOff, Question, Reply, Unanswered

_DOWN = 8
"""Questions in a row, beyond those under way, that get no answer before the others are not tried, but for one of each
part: the server may be there again."""
_REFUSED = (401, 403, 404)
"""What a server says when no question will ever be answered: a wrong key, or no such model."""

Accept = Callable[[int, Reply], None]
"""Called with the place of a question and each reply to it. Raises a ValueError if that makes no sense: then the
question is asked again."""


_used: ContextVar[int] = ContextVar("requests of a question")


class Endpoint:
    """Asks an OpenAI-compatible server; pauses grow from one attempt to the next as the server asks for, or double."""

    def __init__(self, config: LlmConfig, server: EndpointConfig) -> None:
        self._config, self._server = config, server
        self._key = _key(self._server)
        self._loop = asyncio.Runner()
        rate = self._server.requests_per_minute
        self._limit = AsyncLimiter(1, 60 / rate) if rate else None
        self._client = openai.AsyncOpenAI(
            base_url=self._server.url, api_key=self._key or "none", timeout=self._server.timeout,
            organization="", project="",
            http_client=openai.DefaultAsyncHttpxClient(event_hooks={"request": [self._before]}),
        )  # fmt: skip
        self._lost = 0
        """Questions without an answer since the last that had one, for reasons that may pass."""

    def ask(self, questions: Sequence[Question], accept: Accept, check: Callable[[], None]) -> list[Unanswered | None]:
        """Ask all; ``accept`` takes the replies as they come, in any thread. ``check`` is called before each question.
        Returns for each why there is no reply, or None.

        Raises:
            StageError: the server refuses the key or knows no such model, or ``check`` gave one. What was under way
                then is waited for, since it will be paid.
        """
        return self._loop.run(self._all(questions, accept, check))

    def close(self) -> None:
        self._loop.run(self._client.close())
        self._loop.close()

    async def _before(self, _: Any) -> None:
        """Called before every request, the client's own further attempts among them."""
        _used.set(_used.get(0) + 1)
        if self._limit is not None:
            await self._limit.acquire()

    async def _all(
        self, questions: Sequence[Question], accept: Accept, check: Callable[[], None]
    ) -> list[Unanswered | None]:
        places = asyncio.Semaphore(self._server.concurrency)
        stopped: list[StageError] = []

        async def one(number: int) -> Unanswered | None:
            async with places:
                if stopped:
                    return None
                if self._down:
                    return Unanswered(
                        f"not asked: {self._lost} questions before it got no answer from {self._name}", True
                    )
                try:
                    check()
                    return await self._one(questions[number], partial(accept, number))
                except StageError as error:
                    stopped.append(error)
                    return None

        if self._down:  # perhaps it is up again
            self._lost = self._limit_of_lost - 1
            first = await one(0)
            rest = range(1, len(questions))
        else:
            first, rest = None, range(len(questions))
        try:
            async with asyncio.TaskGroup() as group:
                asked = [group.create_task(one(number)) for number in rest]
        except* Exception as failures:  # such as a store that cannot be written to
            raise failures.exceptions[0] from None
        if stopped:
            raise stopped[0]
        return [*([first] if len(rest) < len(questions) else []), *(task.result() for task in asked)]

    @property
    def _limit_of_lost(self) -> int:
        return self._server.concurrency + _DOWN

    @property
    def _down(self) -> bool:
        return self._lost >= self._limit_of_lost

    async def _one(self, question: Question, accept: Callable[[Reply], None]) -> Unanswered | None:
        """Ask once, and again if the reply makes no sense."""
        why = ""
        _used.set(0)
        while (left := self._server.attempts - _used.get()) > 0:
            try:
                reply = await self._reply(question, left - 1)
                self._lost = 0
                await asyncio.to_thread(accept, reply)  # it writes, to a bucket perhaps
                return None
            except CutOff as error:
                return Unanswered(self._hidden(f"{self._name}: {error}"))
            except openai.APIStatusError as error:
                return self._status(error)
            except openai.APIConnectionError as error:
                self._lost += 1
                return Unanswered(self._hidden(f"{self._name} does not answer: {_cause(error)}"), passing=True)
            except ValueError as error:
                why = str(error)
        return Unanswered(self._hidden(f"{self._name}: {why}"))

    @property
    def _name(self) -> str:
        return f"{self._server.model} at {self._server.url}"

    async def _reply(self, question: Question, retries: int) -> Reply:
        """Raises:
        ValueError: it is not what a server of this kind says.
        """
        began = time.monotonic()
        client = self._client.with_options(max_retries=retries)
        said: Any = await client.chat.completions.create(**self._request(question))
        seconds = time.monotonic() - began
        try:
            choice, usage = said.choices[0], said.usage
            text, cut = choice.message.content, choice.finish_reason == "length"
            asked, answered = (int(usage.prompt_tokens or 0), int(usage.completion_tokens or 0)) if usage else (0, 0)
            if text is not None and not isinstance(text, str):
                raise TypeError("not a text")
        except (AttributeError, IndexError, KeyError, TypeError):  # a proxy's page of HTML, or half a completion
            raise ValueError(f"nonsense instead of a completion: {self._hidden(repr(said)):.120}") from None
        price = self._server.price
        cost = (asked * price.input + answered * price.output) / 1e6 if price else 0.0
        return Reply(text or "", asked, answered, cost, seconds, cut=cut)

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
        self._lost = self._lost + 1 if passing else 0
        return Unanswered(f"{self._name} answers with status {status}: {said:.200}", passing)

    def _hidden(self, text: str) -> str:
        """Without the key, should a server repeat it."""
        return text.replace(self._key, "[key]") if self._key else text


def _key(server: EndpointConfig) -> str:
    """Raises:
    StageError: there is none, or it is no key: a header with a line break in it would be shown in full.
    """
    if server.key_env is None:
        return ""
    key = os.environ.get(server.key_env, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        what = "holds something that is no key" if key else "is not set in the environment of the machine that judges"
        raise StageError(f"language model: {server.key_env}, which endpoint.key_env names, {what}")
    return key


def _cause(error: openai.APIConnectionError) -> str:
    if isinstance(error, openai.APITimeoutError):
        return "no answer in time (endpoint.timeout)"
    cause = error.__cause__
    return f"{type(cause).__name__}: {cause}" if cause is not None else str(error)
