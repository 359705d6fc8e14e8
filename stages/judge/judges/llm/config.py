"""A language model as a judge: configuration."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from stages.base import Config, Share, plain
from stages.generate.config import EngineOptions, RolloutConfig
from stages.policy.config import ModelSource


class Price(Config):
    """What an endpoint costs per million tokens, in the currency of your bill."""

    input: NonNegativeFloat
    output: NonNegativeFloat


class EndpointConfig(Config):
    """A server that speaks OpenAI's chat completions."""

    url: str
    """Its base, such as https://api.openai.com/v1 or http://gpu-box:8000/v1."""
    model: Annotated[str, Field(min_length=1)]
    """What the server calls the model."""
    key_env: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")] | None = None
    """The environment variable that holds the key, such as OPENAI_API_KEY; without it no key is sent."""
    structured: Literal["json_schema", "json_object", "none"] = "json_schema"
    """How the server is told the form of the answer; ``none`` for one that knows neither, then words have to do."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """What else goes into every request, such as {reasoning_effort: low}; null leaves a setting out, as in
    {temperature: null} for models that know none. No secrets: it is kept in manifests."""
    concurrency: PositiveInt = 16
    """Requests under way at the same time."""
    requests_per_minute: PositiveInt | None = None
    timeout: PositiveFloat = 120.0
    """Seconds to wait for an answer."""
    attempts: PositiveInt = 5
    """How often a question is asked, with growing pauses, before it counts as unanswered."""
    price: Price | None = None

    @field_validator("url")
    @classmethod
    def _address(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            known = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            known = False
        if "@" in value or "?" in value or "#" in value:
            raise ValueError("holds more than an address; name the variable that holds the key in key_env")
        if not known:
            raise ValueError(f"expected an address such as https://api.openai.com/v1, got {value!r}")
        return value.rstrip("/")

    @field_validator("extra")
    @classmethod
    def _plain(cls, value: dict[str, Any]) -> dict[str, Any]:
        own = [name for name in ("model", "messages", "response_format", "n", "stream") if name in value]
        if own:
            raise ValueError(f"{own[0]} is set by the judge; leave it out")
        return plain(value)


_OPERATION = ("concurrency", "requests_per_minute", "timeout", "attempts", "price", "key_env")
"""How an endpoint is used, not what it says."""


class Budget(Config):
    """The most that one step of judging may spend; what it was told before that is kept."""

    cost: PositiveFloat | None = None
    """In the currency of ``endpoint.price``."""
    tokens: PositiveInt | None = None
    """Of questions and answers together."""


class LlmConfig(Config):
    """A language model that is asked: behind an address, or one that vLLM serves."""

    endpoint: EndpointConfig | None = None
    """A server to ask, or"""
    model: ModelSource | None = None
    """a model that vLLM serves in the step's own workers, as ``policy`` names one."""
    max_length: PositiveInt = 4096
    """Tokens of question and answer together that vLLM makes room for (with ``model``)."""
    engine_options: EngineOptions = Field(default_factory=dict)
    """vLLM's own settings by name (with ``model``)."""
    temperature: NonNegativeFloat = 0.0
    max_tokens: PositiveInt = 512
    """Tokens of its answer."""
    budget: Budget = Budget()

    @model_validator(mode="after")
    def _is_somewhere(self) -> Self:
        if (self.endpoint is None) == (self.model is None):
            raise ValueError("expected either an endpoint or a model that vLLM serves")
        if self.budget.cost is not None and (self.endpoint is None or self.endpoint.price is None):
            raise ValueError("budget.cost needs endpoint.price, what a million tokens cost")
        return self

    def identity(self) -> dict[str, Any]:
        """What can change an answer: not how fast it is asked, or what it may cost. A model that vLLM serves is an
        input of the step."""
        said = self.model_dump(mode="json", exclude_defaults=True, exclude={"budget", "model", "engine_options"})
        if "endpoint" in said:
            said.pop("max_length", None)
            said["endpoint"] = {name: value for name, value in said["endpoint"].items() if name not in _OPERATION}
        if options := self.sampling.text_options:
            said["engine_options"] = options
        return said

    @property
    def sampling(self) -> RolloutConfig:
        """How the model that vLLM serves answers."""
        return RolloutConfig(
            samples=1, temperature=self.temperature, max_tokens=self.max_tokens, max_length=self.max_length,
            engine="vllm", engine_options=self.engine_options,
        )  # fmt: skip


class LlmJudge(LlmConfig):
    """A language model compares answers by two, or gives each a score."""

    use: Literal["llm"]
    mode: Literal["pairwise", "pointwise"] = "pairwise"
    rubric: str | None = None
    """What makes an answer good, in words for the judge; by default that it helps, is true and does no harm."""
    constitution: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Principles; the judge names the one that its verdict rests on."""
    scale: tuple[int, int] = (1, 10)
    """The lowest and highest score (pointwise)."""
    ties: bool = True
    """Whether two answers may be equally good (pairwise)."""
    both_orders: bool = True
    """Ask with each answer shown first, since judges favour a place: twice the cost, and the bias is measured. Without
    it each pair is shown in an order of its own by chance."""
    explain: bool = True
    """Whether it gives its reason before the verdict."""

    @property
    def compares(self) -> bool:
        return self.mode == "pairwise"

    @model_validator(mode="after")
    def _has_a_scale(self) -> Self:
        low, high = self.scale
        if low >= high:
            raise ValueError(f"scale: expected the lowest and a higher score, got [{low}, {high}]")
        return self


class ReviseConfig(LlmConfig):
    """A language model criticises an answer by a principle and revises it: the revised answer is preferred to the
    original. The first step of Constitutional AI (Bai et al., arXiv:2212.08073), as preference data."""

    constitution: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    """Principles; each answer is revised by one of them, by chance."""
    answers: PositiveInt = 1
    """Of the answers to a prompt so many are revised, each a pair."""
    seed: NonNegativeInt = 0
    """Of the choice of principles."""
    max_bad_share: Share = 0.2
    """The stage fails when a larger share of the answers has no revision."""
