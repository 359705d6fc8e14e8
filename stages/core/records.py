"""The records that pass between stages, and their Arrow schemas."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import pyarrow as pa


class Message(TypedDict):
    role: str
    content: str


Messages = Sequence[Message]


@dataclass(frozen=True)
class Prompt:
    prompt_id: str
    messages: Messages


@dataclass(frozen=True)
class Rollout:
    """One sampled response. ``finish_reason`` is ``stop`` (the model ended its turn) or ``length`` (cut off)."""

    prompt_id: str
    sample: int
    messages: Messages
    text: str
    tokens: int
    finish_reason: str


@dataclass(frozen=True)
class Judgement:
    """A judge's verdict on one rollout. Scores of one prompt are comparable; higher is better."""

    prompt_id: str
    sample: int
    score: float
    reason: str = ""


@dataclass(frozen=True)
class PreferencePair:
    """``chosen`` is preferred to ``rejected`` with ``probability``; ``*_ended`` is False for a response that was
    cut off, whose end-of-turn token is then not trained on. ``source`` says where the pair came from.

    A single answer that was called good or bad is a pair of which the other side is empty."""

    prompt: Messages
    chosen: Messages
    rejected: Messages
    chosen_ended: bool = True
    rejected_ended: bool = True
    probability: float = 1.0
    source: str = ""

    @property
    def paired(self) -> bool:
        return bool(self.chosen and self.rejected)

    @property
    def pair_id(self) -> str:
        return content_id([list(self.prompt), list(self.chosen), list(self.rejected)])


def content_id(value: object) -> str:
    """A short name for JSON data that depends on its content alone."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def prompt_key(messages: Messages) -> str:
    """Equal for prompts that differ only in case or white space; used to keep held-out prompts held out."""
    return content_id([[m["role"], " ".join(m["content"].casefold().split())] for m in messages])


_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_IDS = pa.list_(pa.int32())
_MASK = pa.list_(pa.bool_())

PROMPTS = pa.schema([("prompt_id", pa.string()), ("messages", _MESSAGES), ("source", pa.string())])
PAIRS = pa.schema(
    [
        ("pair_id", pa.string()),
        ("prompt", _MESSAGES),
        ("chosen", _MESSAGES),
        ("rejected", _MESSAGES),
        ("chosen_ended", pa.bool_()),
        ("rejected_ended", pa.bool_()),
        ("probability", pa.float64()),
        ("source", pa.string()),
    ]
)
SHARD = pa.schema(
    [
        ("pair_id", pa.string()),
        ("prompt_ids", _IDS),
        ("chosen_ids", _IDS),
        ("chosen_mask", _MASK),
        ("rejected_ids", _IDS),
        ("rejected_mask", _MASK),
        ("probability", pa.float64()),
    ]
)
LOGPROBS = pa.schema(
    [("pair_id", pa.string()), ("chosen", pa.float32()), ("rejected", pa.float32()), ("mismatched", pa.float32())]
)
ROLLOUTS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
        ("messages", _MESSAGES),
        ("text", pa.string()),
        ("tokens", pa.int32()),
        ("finish_reason", pa.string()),
        ("policy", pa.string()),
        ("sampling", pa.string()),
    ]
)
JUDGEMENTS = pa.schema(
    [("prompt_id", pa.string()), ("sample", pa.int32()), ("score", pa.float64()), ("reason", pa.string())]
)


def pair_row(pair: PreferencePair) -> dict[str, object]:
    """A pair as a row of ``PAIRS``."""
    return {"pair_id": pair.pair_id, **{name: getattr(pair, name) for name in PAIRS.names[1:]}}


def prompt_row(prompt: Prompt, source: str) -> dict[str, object]:
    """A prompt as a row of ``PROMPTS``."""
    return {"prompt_id": prompt.prompt_id, "messages": prompt.messages, "source": source}
