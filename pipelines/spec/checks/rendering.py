"""The first rows of every file as the model will see them: what its chat template refuses, drops or makes equal."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from pipelines.spec.checks import template
from pipelines.spec.checks.template import Chat
from pipelines.spec.models import PipelineSpec
from pipelines.spec.problems import Checked, Fault, KeyPath, printable
from stages.core.errors import NoPair, RowError
from stages.core.formats import RowParser, parse_prompt
from stages.core.records import Messages, PairIds, PreferencePair, Prompt
from stages.readers import Row, files, rows

ROWS = 200
"""Rows of each file that are looked at."""
_BATCH = 50


@dataclass
class _Source:
    """What was found in one source, or in one file of prompts."""

    name: str
    good: int = 0
    whole: bool = True
    refused: list[tuple[str, str]] = field(default_factory=list)
    """Place and reason."""
    longest: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Messages whose text the template leaves out, by role."""
    unread: Counter[str] = field(default_factory=Counter)
    """Fields of messages that the template does not mention."""
    first: dict[str, str] = field(default_factory=dict)
    """Where each of these was first seen."""


@dataclass(frozen=True)
class Look:
    """What rows are like for the model. ``shown`` has the rows that were asked for, as text for a terminal."""

    checked: Checked
    shown: tuple[str, ...] = ()


def look(spec: PipelineSpec, folder: Path, show: int = 0) -> Look:
    """Render and tokenise the first rows of every file of pairs and prompts. Without torch, but for a GGUF file."""
    checked = Checked()
    chat = template.read(spec, folder, checked)
    if chat is None or checked.faults:
        return Look(checked)
    shown: list[str] = []
    for number, source in enumerate(spec.preferences):
        parser = RowParser(source)

        def pairs(row: Row, parser: RowParser = parser) -> Sequence[PreferencePair]:
            assert not isinstance(row.value, RowError)
            return parser.pairs(row.value, row.typed)

        found = _Source(source.path)
        for place, pair, ids in _encoded(chat, _items(source.path, folder, pairs, found)):
            _see(chat, found, place, pair, ids, spec.prepare.max_length, spec.prepare.truncation == "drop")
            if not isinstance(ids, RowError) and found.good <= show:
                shown.append(_shown(chat, place, ids))
        _report(found, ("preferences", number), spec, checked)
    for name in ("train", "heldout"):
        location = getattr(spec.prompts, name)
        if location:
            shown += _prompts(chat, spec, folder, name, location, show, checked)
    return Look(checked, tuple(shown))


def _prompts(
    chat: Chat, spec: PipelineSpec, folder: Path, name: str, location: str, show: int, checked: Checked
) -> list[str]:
    def prompt(row: Row) -> Sequence[Prompt]:
        assert not isinstance(row.value, RowError)
        return [parse_prompt(row.value, row.typed)]

    found, shown = _Source(location), []
    room = spec.rollout.max_length - spec.rollout.max_tokens
    for place, asked in _items(location, folder, prompt, found):
        try:
            ids: PairIds | RowError = PairIds(chat.encoder.prompt(asked.messages, asked.tools), [], [])
        except RowError as error:
            ids = error
        pair = PreferencePair(asked.messages, (), (), tools=asked.tools)
        _see(chat, found, place, pair, ids, room, True)
        if not isinstance(ids, RowError) and found.good <= show:
            shown.append(_shown(chat, place, ids))
    _report(found, ("prompts", name), spec, checked)
    return shown


def _items(location: str, folder: Path, parse: Any, found: _Source) -> Iterator[tuple[str, Any]]:
    """The pairs or prompts of each file's first rows, with their places; what cannot be read is said elsewhere."""
    for file in files(location, folder):
        read = 0
        for row in islice(rows(file), ROWS):
            read += 1
            if isinstance(row.value, RowError):
                continue
            try:
                for item in parse(row):
                    yield str(row.place), item
            except (NoPair, RowError):
                continue
        found.whole &= read < ROWS


def _encoded(
    chat: Chat, items: Iterator[tuple[str, PreferencePair]]
) -> Iterator[tuple[str, PreferencePair, PairIds | RowError]]:
    while batch := list(islice(items, _BATCH)):
        for (place, pair), ids in zip(batch, chat.encoder.ids([pair for _, pair in batch]), strict=True):
            yield place, pair, ids


def _see(
    chat: Chat, found: _Source, place: str, pair: PreferencePair, ids: PairIds | RowError, longest: int, refuse: bool
) -> None:
    if isinstance(ids, RowError):
        found.refused.append((place, str(ids)))
        return
    length = len(ids.prompt) + max(len(ids.chosen), len(ids.rejected))
    found.longest = max(found.longest, length)
    rows_ = chat.embedding_rows
    if rows_ is not None and (above := [i for i in chain(*ids) if i >= rows_]):
        found.refused.append((place, f"token id {above[0]} is not among the embedding's {rows_} rows"))
        return
    if length > longest and refuse:
        found.refused.append((place, f"{length} tokens, more than {longest}"))
        return
    found.good += 1
    answer = pair.chosen or pair.rejected
    _unread(chat, found, place, [*pair.prompt, *answer], pair.tools)


def _unread(chat: Chat, found: _Source, place: str, messages: Messages, tools: str) -> None:
    """Count what the template leaves out: texts, fields of messages, tool definitions."""

    def count(counter: Counter[str], name: str) -> None:
        counter[name] += 1
        found.first.setdefault(name, place)

    written = chat.encoder.text(messages, tools, prompt=messages[-1]["role"] != "assistant")
    for message in messages:
        if message["content"].strip() not in written:
            count(found.dropped, message["role"])
        for name in json.loads(message.get("extra", "{}")):
            if name not in chat.encoder.template:
                count(found.unread, name)
    if tools and "tools" not in chat.encoder.template:
        count(found.unread, "tools")


def _report(found: _Source, where: KeyPath, spec: PipelineSpec, checked: Checked) -> None:
    total = found.good + len(found.refused)
    if found.refused:
        place, reason = found.refused[0]
        message = (
            f"{len(found.refused)} of the first {total} rows of {found.name} cannot be used; first: {place} {reason}"
        )
        allowed = spec.data.max_bad_share
        if not found.good:
            checked.faults.append(Fault(where, message))
        elif where[0] == "preferences" and found.whole and len(found.refused) > allowed * total:
            checked.faults.append(Fault(where, f"{message}; more than data.max_bad_share {allowed:g} allows"))
        else:
            checked.notes.append(f"{message}; they will go to quarantine")
    for counter, verb in ((found.dropped, "leaves out text of"), (found.unread, "does not read")):
        for name, number in counter.most_common(5):
            what = f"{number} {name} turns" if counter is found.dropped else f"{name}, which {number} messages have"
            checked.notes.append(f"{found.name}: the chat template {verb} {what}; first: {found.first[name]}")


def _shown(chat: Chat, place: str, ids: PairIds) -> str:
    """A row's parts, each with its tokens and what it says, control tokens written out."""
    lines = [place]
    for name, part in zip(("prompt", "chosen", "rejected"), ids, strict=True):
        if part:
            counts = "not trained on" if name == "prompt" else "trained on"
            lines.append(f"  {name}: {len(part)} tokens, {counts}")
            text = chat.encoder.tokenizer.decode(part)
            lines += [f"    | {printable(line)}" for line in text.split("\n")]
    return "\n".join(lines)
