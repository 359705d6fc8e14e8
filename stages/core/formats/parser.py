"""Finds out which shape a row has, and turns a row of any shape into preference pairs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

from stages.base import Plugin, resolve
from stages.core.errors import NoPair, RowError, kind, names
from stages.core.formats import lists, pairs, verdicts
from stages.core.formats.cells import opened
from stages.core.formats.config import FormatConfig
from stages.core.formats.fields import (
    ALIASES,
    CANDIDATES,
    Row,
    candidates,
    column,
    counted,
    mapped,
    number,
    probability,
)
from stages.core.formats.messages import check_text, json_text, messages
from stages.core.formats.unused import refuse_media, unused
from stages.core.records import Message, Messages, PreferencePair, Prompt, content_id
from stages.hints import closest

Parse = Callable[[Row], list[PreferencePair]]
_OF_THE_PROMPT = frozenset({"system", "tools", "prompt", "input"})


class RowParser:
    """Turns rows of one source into pairs, as its configuration says.

    Raises:
        ImportError, ValueError: the user's own function does not exist.
    """

    def __init__(self, config: FormatConfig) -> None:
        self._fields = config.fields
        self._ignore = frozenset(config.ignore)
        self._shapes = _shapes(config)
        self._format = config.format
        self._own: Callable[..., Any] | None = None
        if isinstance(config.format, Plugin):
            self._own = partial(resolve(config.format.use), **config.format.options)

    def pairs(self, row: Mapping[str, Any], typed: bool = False) -> list[PreferencePair]:
        """The pairs that a row gives; ``typed`` is for rows of typed columns (``stages.core.formats.cells``).

        Raises:
            NoPair: the row is valid, but yields none by its nature.
            RowError: the row cannot be used.
        """
        row = counted(mapped(row, self._fields))
        return self._by_own(row, typed) if self._own is not None else self._by_shape(opened(row, typed))

    def _by_shape(self, row: Row) -> list[PreferencePair]:
        refuse_media(row, self._ignore)
        found = self._shapes[self._shape(row)](row)
        extra = _common_columns(row)
        system = _system(row)
        if not extra and not system:
            return found
        return [replace(pair, **extra, prompt=_with_system(pair.prompt, system)) for pair in found]

    def _shape(self, row: Row) -> str:
        return detect(row) if not isinstance(self._format, str) or self._format == "auto" else self._format

    def unused(self, row: Mapping[str, Any], typed: bool = False) -> list[str]:
        """The columns of a usable row that are not read; the user's own function may read any."""
        if self._own is not None:
            return []
        row = opened(counted(mapped(row, self._fields)), typed)
        columns = {path.removeprefix("not ").partition(".")[0] for path in self._fields.values()}
        return unused(row, self._shape(row), {*columns, *self._fields.values()}, self._ignore)

    def _by_own(self, row: Row, typed: bool) -> list[PreferencePair]:
        """What the user's function makes of a row: a mapping in one of the shapes, a pair, a list of these, or None."""
        assert self._own is not None
        assert isinstance(self._format, Plugin)
        use = self._format.use
        try:
            made = self._own(row)
        except RowError:
            raise
        except Exception as error:  # the user's code may raise anything
            raise RowError("", f"{use} raised {type(error).__name__}: {error}"[:200]) from error
        if made is None:
            raise NoPair("", f"{use} skipped it")
        found: list[PreferencePair] = []
        for item in made if isinstance(made, list) else [made]:
            if isinstance(item, PreferencePair):
                found.append(_checked(item))
            elif isinstance(item, Mapping):
                found += self._by_shape(opened(item, typed))
            else:
                raise RowError("", f"{use} returned {type(item).__name__}; expected a mapping, a PreferencePair, "
                                   "a list of these, or None")  # fmt: skip
        if not found:
            raise NoPair("", f"{use} skipped it")
        return found


def _shapes(config: FormatConfig) -> dict[str, Parse]:
    return {
        "preference": pairs.preference,
        "transcript": pairs.transcript,
        "labelled": pairs.labelled,
        "sharegpt": pairs.sharegpt,
        "scored": partial(lists.scored, strategy=config.strategy, min_margin=config.min_margin),
        "ranked": partial(lists.ranked, strategy=config.strategy, min_margin=config.min_margin),
        "votes": verdicts.votes,
        "choice": verdicts.choice,
        "alpaca_eval": verdicts.alpaca_eval,
    }


def detect(row: Row) -> str:
    """The name of a row's shape, by its fields and the types of their values.

    Raises:
        RowError: no shape fits.
    """
    two_answers = candidates(row) is not None
    both_sides = column(row, "chosen") is not None and column(row, "rejected") is not None
    if (row.get("votes") is not None and (two_answers or both_sides)) or (
        verdicts.annotator_columns(row) and two_answers
    ):
        return "votes"
    if two_answers and "output_1" in row and isinstance(row.get("preference"), int | float):
        return "alpaca_eval"
    if both_sides:
        sides = [row[str(column(row, name))] for name in ("chosen", "rejected")]
        if column(row, "prompt") is None and all(pairs.is_transcript(side) for side in sides):
            return "transcript"
        turns = row.get("conversations", row.get("conversation"))
        return "sharegpt" if isinstance(turns, list) else "preference"
    if row.get("completion") is not None and column(row, "label"):
        return "labelled"  # whatever lists come with it
    answers: Any = row.get(str(column(row, "responses")))
    listed = isinstance(answers, list)
    if listed and (column(row, "scores") or column(row, "ranks")):
        return "ranked"
    if two_answers or (listed and len(answers) == 2 and column(row, "verdict")):
        return "choice"
    if column(row, "completions") and _holds_scores(row["completions"]):
        return "scored"
    if column(row, "completion") or (column(row, "label") and "messages" in row):
        return "labelled"
    if column(row, "chosen") or column(row, "rejected"):
        return "preference"  # which says what is missing
    raise RowError("", _unknown(row))


def _holds_scores(completions: Any) -> bool:
    return isinstance(completions, list) and all(isinstance(item, Mapping) for item in completions)


def _unknown(row: Row) -> str:
    known = dict.fromkeys(chain(*ALIASES.values(), *CANDIDATES))
    close = [
        f"{match!r} for {str(name)!r:.40}"
        for name in row
        if name not in known and (match := closest(str(name), known, 0.75))
    ]
    todo = f"did you mean {', '.join(close)}?" if close else "name its columns under fields (docs/formats.md)"
    return f"no known shape of preference data: the row has {names(row)}; {todo}"


def _common_columns(row: Row) -> dict[str, Any]:
    """What a row of any shape may say about its pairs."""
    found: dict[str, Any] = {}
    if row.get("preference_probability") is not None:
        found["probability"] = probability(row["preference_probability"], "preference_probability")
    if row.get("weight") is not None:
        found["weight"] = number(row["weight"], "weight")
        if found["weight"] < 0:
            raise RowError("weight", f"expected a number of at least 0, found {row['weight']!r:.40}")
    if row.get("kind") is not None:
        if not isinstance(row["kind"], str):
            raise RowError("kind", f"expected text, found {kind(row['kind'])}")
        check_text(row["kind"], "kind")
        found["kind"] = row["kind"]
    if tools := _tools(row):
        found["tools"] = tools
    return found


def _tools(row: Row) -> str:
    """The JSON text of the tool definitions; empty where there are none."""
    tools = row.get(str(column(row, "tools")))
    if isinstance(row.get("input"), Mapping):
        tools = tools or row["input"].get("tools")
    return json_text(tools, "tools") if tools else ""


def _checked(pair: PreferencePair) -> PreferencePair:
    """A pair that the user's own code made, whose messages may have any fields."""
    sides: dict[str, Any] = {}
    for name in ("prompt", "chosen", "rejected"):
        plain = [{**m, **json.loads(m["extra"])} if "extra" in m else m for m in getattr(pair, name)]
        sides[name] = messages([{k: v for k, v in m.items() if k != "extra"} for m in plain], name, "") if plain else ()
    return replace(pair, **sides)


def _system(row: Row) -> str:
    found = row.get(str(column(row, "system")))
    if found is not None and not isinstance(found, str):
        raise RowError("system", f"expected text, found {kind(found)}")
    if found:
        check_text(found, "system")
    return (found or "").strip()


def _with_system(asked: Messages, system: str) -> Messages:
    if not system or asked[0]["role"] == "system":
        return asked
    first: Message = {"role": "system", "content": system}
    return (first, *asked)


def parse_prompt(row: Row, typed: bool = False) -> Prompt:
    """A row of a prompts file as a prompt; its id follows from its content.

    Raises:
        RowError: there is no prompt, or it is empty, or ends with the assistant's turn.
    """
    row = opened(row, typed)
    refuse_media(row, None)
    asked, tools = _with_system(pairs.prompt_of(row), _system(row)), _tools(row)
    content: list[object] = list(asked)
    return Prompt(content_id([content, tools] if tools else content), asked, tools, _metadata(row))


def _metadata(row: Row) -> str:
    """What a judge may want to know of a prompt's row beside the prompt: all that is not part of it."""
    asked = {column(row, "prompt"), *_OF_THE_PROMPT}
    rest = {str(name): value for name, value in row.items() if name not in asked and not isinstance(value, bytes)}
    return json.dumps(rest, default=str) if rest else ""  # ASCII: a broken text of another column is no fault here


def parse_pair(row: Row) -> PreferencePair:
    """The pair of a row whose shape yields exactly one."""
    (pair,) = RowParser(FormatConfig()).pairs(row)
    return pair
