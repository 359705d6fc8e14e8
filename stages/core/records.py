"""The records that pass between stages, and their Arrow schemas."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


class Message(TypedDict):
    """``extra`` is the JSON text of an object with whatever else a chat template may read, in the order of the data:
    ``tool_calls`` (only assistants make calls), ``reasoning_content``, ``name``, ``tool_call_id``, and others."""

    role: str
    content: str
    extra: NotRequired[str]


Messages = Sequence[Message]


class Vote(TypedDict):
    """One annotator's vote on a pair: 1 for chosen, 0 for rejected, 0.5 for a tie, None for an abstention."""

    annotator: str
    preference: float | None


@dataclass(frozen=True)
class Prompt:
    """``tools`` is as in ``PreferencePair``. ``metadata`` is the JSON text of an object with what else stood in the
    prompt's row, such as a reference answer, for judges."""

    prompt_id: str
    messages: Messages
    tools: str = ""
    metadata: str = ""


class PairIds(NamedTuple):
    """Token ids of a pair's three parts; a side that has no answer is empty."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


@dataclass(frozen=True)
class Rollout:
    """One sampled response. ``finish_reason`` is ``stop`` (the model ended its turn) or ``length`` (cut off).

    ``ids`` are the tokens as they were sampled, with the end of the turn if it came, behind ``prompt_ids``; ``text`` is
    what they say, without special tokens. ``tools`` is as in ``PreferencePair``, ``metadata`` as in ``Prompt``."""

    prompt_id: str
    sample: int
    messages: Messages
    text: str
    tokens: int
    finish_reason: str
    tools: str = ""
    prompt_ids: Sequence[int] = ()
    ids: Sequence[int] = ()
    metadata: str = ""


@dataclass(frozen=True)
class Judgement:
    """A judge's score of one rollout. Scores of one prompt are comparable; higher is better.

    ``principle`` names the principle that the score rests on, if there is one. ``input_tokens`` and ``output_tokens``
    were spent on it, ``cost`` in money and ``seconds`` of waiting."""

    prompt_id: str
    sample: int
    score: float
    reason: str = ""
    principle: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class PreferencePair:
    """``chosen`` is preferred to ``rejected`` with ``probability``; ``*_ended`` is False for a response that was
    cut off; its end-of-turn token is then not trained on. ``source`` says where the pair came from.

    A single answer labelled good or bad is a pair whose other side is empty.

    ``ids`` are the tokens of a pair whose answers a policy sampled: it is trained on these, and not on what its texts
    would be tokenised to.

    ``weight`` multiplies the pair's loss. ``kind`` is the user's name for what the pair is about (factuality,
    safety). ``tools`` is the JSON text of the tool definitions that the chat template is given. ``votes``, if there
    are any, decide the probability later (``stages.data.curate``)."""

    prompt: Messages
    chosen: Messages
    rejected: Messages
    chosen_ended: bool = True
    rejected_ended: bool = True
    probability: float = 1.0
    source: str = ""
    weight: float = 1.0
    kind: str = ""
    tools: str = ""
    votes: tuple[Vote, ...] = ()
    ids: PairIds | None = None

    @property
    def paired(self) -> bool:
        return bool(self.chosen and self.rejected)

    @property
    def pair_id(self) -> str:
        content: list[object] = [list(self.prompt), list(self.chosen), list(self.rejected)]
        return content_id([*content, self.tools] if self.tools else content)


_ENCODER = json.JSONEncoder(sort_keys=True, ensure_ascii=False)


def content_id(value: object) -> str:
    """A short name for JSON data that depends on its content alone."""
    return hashlib.sha256(_ENCODER.encode(value).encode()).hexdigest()[:16]


def id_numbers(ids: pa.ChunkedArray) -> NDArray[np.uint64]:
    """The 64 bits that each content id of a column encodes.

    Raises:
        pyarrow.ArrowInvalid: one of them does not have 16 characters.
    """
    if not len(ids):
        return np.zeros(0, np.uint64)
    written = ids.cast(pa.binary(16)).combine_chunks()
    text = np.frombuffer(written.buffers()[1], np.uint8)[16 * written.offset :][: 16 * len(written)]
    digits = np.where(text >= ord("a"), text - ord("a") + 10, text - ord("0")).astype(np.uint8)
    return (digits[0::2] << 4 | digits[1::2]).view(">u8").astype(np.uint64)


def prompt_key(messages: Messages) -> str:
    """Equal for prompts that differ only in case or white space; used to keep held-out prompts held out."""
    return content_id([[m["role"], " ".join(m["content"].casefold().split())] for m in messages])


_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("extra", pa.string())]))
_VOTES = pa.list_(pa.struct([("annotator", pa.string()), ("preference", pa.float64())]))
_IDS = pa.list_(pa.int32())

PROMPTS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("messages", _MESSAGES),
        ("tools", pa.string()),
        ("metadata", pa.string()),
        ("source", pa.string()),
    ]
)
PAIRS = pa.schema(
    [
        ("pair_id", pa.string()),
        ("prompt_key", pa.string()),
        ("prompt", _MESSAGES),
        ("chosen", _MESSAGES),
        ("rejected", _MESSAGES),
        ("chosen_ended", pa.bool_()),
        ("rejected_ended", pa.bool_()),
        ("probability", pa.float64()),
        ("source", pa.string()),
        ("weight", pa.float64()),
        ("kind", pa.string()),
        ("tools", pa.string()),
        ("votes", _VOTES),
        ("ids", pa.struct([(name, _IDS) for name in PairIds._fields])),
    ]
)
SELECTION = pa.schema(
    [
        ("input", pa.int32()),
        ("row", pa.int64()),
        ("probability", pa.float64()),
        ("weight", pa.float64()),
        ("task", pa.string()),
        ("heldout", pa.bool_()),
    ]
)
"""Which rows of which input files are used, in that order, and with what label; a row may appear more than once."""
SHARD = pa.schema(
    [
        ("pair_id", pa.string()),
        ("prompt_ids", _IDS),
        ("chosen_ids", _IDS),
        ("rejected_ids", _IDS),
        ("probability", pa.float64()),
        ("weight", pa.float64()),
        ("task", pa.string()),
        ("source", pa.string()),
    ]
)
TOKENS = pa.schema([*SHARD, ("row", pa.int64())])
"""Tokenised pairs of one file; ``row`` is the pair's place in it."""
LOGPROBS = pa.schema(
    [("pair_id", pa.string()), ("chosen", pa.float32()), ("rejected", pa.float32()), ("mismatched", pa.float32())]
)
ROLLOUTS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
        ("messages", _MESSAGES),
        ("tools", pa.string()),
        ("metadata", pa.string()),
        ("text", pa.string()),
        ("tokens", pa.int32()),
        ("finish_reason", pa.string()),
        ("prompt_ids", _IDS),
        ("ids", _IDS),
        ("policy", pa.string()),
        ("sampling", pa.string()),
    ]
)
_STATED = [
    ("reason", pa.string()),
    ("principle", pa.string()),
    ("input_tokens", pa.int64()),
    ("output_tokens", pa.int64()),
    ("cost", pa.float64()),
    ("seconds", pa.float64()),
]
JUDGEMENTS = pa.schema([("prompt_id", pa.string()), ("sample", pa.int32()), ("score", pa.float64()), *_STATED])
VERDICTS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("first", pa.int32()),
        ("second", pa.int32()),
        ("preference", pa.float64()),
        ("shown", pa.float64()),
        ("swapped", pa.float64()),
        *_STATED,
    ]
)
"""Comparisons of two answers to a prompt, by their sample numbers; of two policies, the first is the new one's."""


_FIELDS = [name for name in PAIRS.names if name not in ("pair_id", "prompt_key")]
"""What a pair is made of; the others follow from it, and are kept so that no text is hashed again."""


def pair_row(pair: PreferencePair) -> dict[str, object]:
    """A pair as a row of ``PAIRS``."""
    row = {name: getattr(pair, name) for name in _FIELDS}
    ids = pair.ids._asdict() if pair.ids is not None else None
    return {**row, "pair_id": pair.pair_id, "prompt_key": prompt_key(pair.prompt), "ids": ids}


def pair_of(row: Mapping[str, Any]) -> PreferencePair:
    """A row of ``PAIRS`` as a pair."""
    values = {name: row[name] for name in _FIELDS}
    values |= {name: messages_of(row[name]) for name in ("prompt", "chosen", "rejected")}
    ids = PairIds(**row["ids"]) if row["ids"] is not None else None
    return PreferencePair(**{**values, "votes": tuple(row["votes"] or ()), "ids": ids})


def messages_of(value: Iterable[Mapping[str, Any]]) -> Messages:
    """Messages from an Arrow table, where every message has every field."""
    return tuple({name: text for name, text in message.items() if text is not None} for message in value)  # type: ignore[misc]


def prompt_row(prompt: Prompt, source: str) -> dict[str, object]:
    """A prompt as a row of ``PROMPTS``."""
    names = ("prompt_id", "messages", "tools", "metadata")
    return {**{name: getattr(prompt, name) for name in names}, "source": source}
