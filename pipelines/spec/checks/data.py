"""What a look at the data files shows before a run: whether they can be read, what will go to quarantine, what is on
both sides."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from pipelines.spec.problems import Checked, Fault, KeyPath
from stages.core.errors import NoPair, RowError
from stages.core.formats import RowParser, parse_prompt
from stages.core.formats.config import FormatConfig
from stages.core.formats.unused import entry
from stages.core.losses import config as loss_config
from stages.core.records import Messages, prompt_key
from stages.readers import DataFile, NoFiles, ReadError, files, rows

_SHOWN = 5
_ROWS = 20_000
"""Rows of each file that are looked at; the run reads all."""
_REMOTE_ROWS = 100
_NAMED_ROWS = 200
"""Rows of each file whose unused columns are named."""


@dataclass
class _Found:
    """What a location holds, as far as it was read."""

    keys: dict[str, str] = field(default_factory=dict)
    """Where each prompt first appears, by its normalised content."""
    good: int = 0
    bad: list[str] = field(default_factory=list)
    single: dict[str, list[str]] = field(default_factory=lambda: {"true": [], "false": []})
    """Rows with a single answer, by its label."""
    skipped: Counter[str] = field(default_factory=Counter)
    whole: bool = True
    unused: dict[str, str] = field(default_factory=dict)
    """Columns that nothing reads, with where each was first seen."""

    @property
    def bad_share(self) -> float:
        return len(self.bad) / max(1, len(self.bad) + self.good + self.skipped.total())


def check_data(values: Mapping[str, Any], base: Path, checked: Checked, growing: bool = False) -> None:
    """Look at the files named in the valid sections of a spec, and add what is wrong with them to ``checked``. Those to
    train on may be ``growing``: from none."""
    prompts, train, data = values.get("prompts"), values.get("train"), values.get("data")
    heldout = training = _Found()
    if prompts is not None and prompts.heldout:
        heldout = _look(prompts.heldout, None, base, ("prompts", "heldout"), checked)
    if prompts is not None and prompts.train:
        training = _look(prompts.train, None, base, ("prompts", "train"), checked, growing)
        if both := _overlap(heldout, training):
            checked.faults.append(
                Fault(("prompts", "heldout"), f"{both} are also in training; remove them from one side")
            )
    evaluate = values.get("evaluate")
    if evaluate is not None and evaluate.checks is not None:
        place: KeyPath = ("evaluate", "checks", "prompts")
        if both := _overlap(_look(evaluate.checks.prompts, None, base, place, checked), training):
            checked.faults.append(Fault(place, f"{both} are also in training; remove them from one side"))
    needs_pairs = train is not None and not loss_config.takes_unpaired(train)
    for number, source in enumerate(values.get("preferences") or ()):
        where: KeyPath = ("preferences", number)
        found = _look(source.path, source, base, where, checked, growing)
        _single(found, needs_pairs, where, checked)
        checked.notes += _unused(found, source.path)
        if both := _overlap(heldout, found):
            checked.notes.append(f"{both} are also in {source.path}: their pairs are not trained on")
        if data is not None and found.good and found.whole and found.bad_share > data.max_bad_share:
            message = (
                f"{len(found.bad)} of {len(found.bad) + found.good + found.skipped.total()} rows cannot be used, more "
                f"than data.max_bad_share {data.max_bad_share}; first: {found.bad[0]}"
            )
            checked.faults.append(Fault(where, message))


def _look(
    location: str, config: FormatConfig | None, base: Path, where: KeyPath, checked: Checked, growing: bool = False
) -> _Found:
    """Read the first rows of every file that a location names; prompts if there is no configuration."""
    found = _Found()
    try:
        listed = files(location, base)
        parser = RowParser(config) if config is not None else None
    except (ReadError, ImportError, ValueError) as error:
        if growing and isinstance(error, NoFiles):
            checked.notes.append(str(error))
        else:
            checked.faults.append(Fault(where, str(error)))
        return found
    for file in listed:
        try:
            if not _read(file, parser, found):
                checked.notes.append(f"{file.name} is empty")
        except (ReadError, OSError) as error:
            checked.faults.append(Fault(where, f"{file.name} cannot be read: {error}"))
            return found
    name = listed[0].name if len(listed) == 1 else location
    if not found.good and (found.bad or not growing):
        checked.faults.append(Fault(where, _nothing(name, found, parser is not None)))
    elif found.bad:
        checked.notes.append(f"{len(found.bad)} unusable rows of {name} will go to quarantine; first: {found.bad[0]}")
    if found.skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in found.skipped.most_common(_SHOWN))
        checked.notes.append(f"{found.skipped.total()} rows of {name} give no pair: {reasons}")
    return found


def _read(file: DataFile, parser: RowParser | None, found: _Found) -> int:
    """Look at a file's first rows; returns how many there were."""
    most = _REMOTE_ROWS if file.remote else _ROWS
    read = 0
    for row in islice(rows(file), most):
        read += 1
        place = str(row.place)
        try:
            if isinstance(row.value, RowError):
                raise row.value
            for messages, label in _usable(row.value, row.typed, parser):
                found.good += 1
                if label:
                    found.single[label].append(place)
                excerpt = json.dumps(messages[-1]["content"][:40], ensure_ascii=False)
                found.keys.setdefault(prompt_key(messages), f"{place} {excerpt}")
            if parser is not None and read <= _NAMED_ROWS:
                for name in parser.unused(row.value, row.typed):
                    found.unused.setdefault(name, place)
        except NoPair as why:
            found.skipped[str(why)] += 1
        except RowError as error:
            found.bad.append(f"{place} {error}")
    found.whole &= read < most
    return read


def _usable(value: Mapping[str, Any], typed: bool, parser: RowParser | None) -> Iterator[tuple[Messages, str]]:
    """A row's prompts, each with its label if it is a single answer."""
    if parser is None:
        yield parse_prompt(value, typed).messages, ""
        return
    for pair in parser.pairs(value, typed):
        yield pair.prompt, "" if pair.paired else "true" if pair.chosen else "false"


def _nothing(name: str, found: _Found, pairs: bool) -> str:
    if found.skipped:
        return f"no row of {name} gives a pair: {found.skipped.most_common(1)[0][0]}"
    detail = f"; first: {found.bad[0]}" if found.bad else " (the file is empty)"
    expected = '{"prompt": ..., "chosen": ..., "rejected": ...}' if pairs else '{"prompt": ...}'
    return f"no usable row in {name}, expected rows like {expected}{detail}"


def _single(found: _Found, needs_pairs: bool, where: KeyPath, checked: Checked) -> None:
    good, bad = found.single["true"], found.single["false"]
    first, count = next(iter([*good, *bad]), None), len(good) + len(bad)
    if not count:
        return
    if needs_pairs:
        message = (
            f"{count} rows have one answer with a label (first: {first}) and train.loss needs pairs; use loss: kto or "
            "bco, or give chosen and rejected"
        )
        checked.faults.append(Fault(where, message))
        return
    checked.notes.append(f"{count} rows are single answers with a label; first: {first}")
    if count == found.good and not (good and bad):
        checked.notes.append(f"all of them are labelled {'true' if good else 'false'}: there is nothing to tell apart")


def _unused(found: _Found, name: str) -> Iterator[str]:
    """What is passed over: one note for a source, and one for each column that may say something about its pairs."""
    if found.unused:
        yield f"{name}: columns that are not used: {', '.join(sorted(found.unused))}"
    for column, place in sorted(found.unused.items()):
        if meant := entry(column):
            yield (
                f"warning: {name}: {column} (first: {place}) looks like a label, a weight or votes and is not used; to "
                f"use it give the source {meant}, to leave it alone ignore: [{column}]"
            )


def _overlap(heldout: _Found, training: _Found) -> str:
    """Which held-out prompts are also in training; empty if none are."""
    both = [f"{where} = {training.keys[key]}" for key, where in heldout.keys.items() if key in training.keys]
    more = f" and {len(both) - _SHOWN} more" if len(both) > _SHOWN else ""
    return f"{len(both)} held-out prompts ({'; '.join(both[:_SHOWN])}{more})" if both else ""
