"""Preference pairs become answers to judge, in an order that does not tell which is which, with what people said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from stages.base import StageError, Summary
from stages.core.records import ROLLOUTS, PreferencePair, content_id, pair_of, prompt_key
from stages.io.artifact import Artifact, grouped
from stages.io.context import StageContext
from stages.io.filenames import RECORDS
from stages.io.output import Output
from stages.io.parts import part_name, run_alone
from stages.io.tables import rows_of
from stages.judge.check.config import LabelledConfig

LABELS = "labels.arrow"
LABEL = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("prompt_key", pa.string()),
        ("preference", pa.float64()),
        ("votes", pa.list_(pa.float64())),
        ("source", pa.string()),
    ]
)
"""Beside the answers: how likely people prefer sample 0 to sample 1, and each vote for it (1, 0, or 0.5 for a tie).
``prompt_id`` is a name of the pair; ``prompt_key`` is what pairs on the same prompt have in common."""
_PART = 256
"""Pairs of a part, the judge's unit of work."""


def run(config: LabelledConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """A part has the ``records.arrow`` of two rollouts for each pair, and ``labels.arrow``.

    The summary counts ``pairs``, those that were ``repeated`` (in either order; the first one counts) and why others
    were ``left_out``.

    Raises:
        StageError: there is no pair to judge.
    """
    made: Summary = run_alone("stages.judge.check.labelled:label", context, config, grouped(inputs, "pairs"))
    if not made["pairs"]:
        raise StageError(f"no pair of answers to judge: {made['left_out'] or 'the files hold none'}")
    return made


def label(output: Output, report: Callable[..., object], config: LabelledConfig, files: Sequence[Artifact]) -> Summary:
    left_out: Counter[str] = Counter()
    pairs = (pair_of(row) for file in files for row in rows_of(file.tables(RECORDS)))
    chosen, repeated = choose(pairs, config, left_out)
    for number, start in enumerate(range(0, len(chosen), _PART)):
        part_of = chosen[start : start + _PART]
        with output.part(part_name(number, start, start + len(part_of))) as part:
            rollouts = [row for name, pair in part_of for row in _rollouts(name, pair)]
            part.table(RECORDS, [pa.Table.from_pylist(rollouts, schema=ROLLOUTS)], ROLLOUTS)
            labels = [_label(name, pair) for name, pair in part_of]
            part.table(LABELS, [pa.Table.from_pylist(labels, schema=LABEL)], LABEL)
        report(start + len(part_of), len(chosen), "pairs")
    return {"pairs": len(chosen), "repeated": repeated, "left_out": dict(left_out.most_common())}


def choose(
    pairs: Iterable[PreferencePair], config: LabelledConfig, left_out: Counter[str]
) -> tuple[list[tuple[str, PreferencePair]], int]:
    """The pairs to judge, each once, with their names and sorted by these, and how many were repetitions. No more than
    twice the limit are held at a time."""
    seen: set[str] = set()
    kept: dict[str, PreferencePair] = {}
    repeated = 0

    def drawn() -> list[str]:
        return sorted(kept, key=lambda name: content_id([config.seed, name]))[: config.limit]

    for pair in pairs:
        if why := _unusable(pair):
            left_out[why] += 1
            continue
        name = content_id([list(pair.prompt), pair.tools, *sorted(texts(pair))])
        repeated += name in seen
        if name not in seen:
            seen.add(name)
            kept[name] = pair
        if config.limit is not None and len(kept) >= 2 * config.limit:
            kept = {name: kept[name] for name in drawn()}
    return [(name, kept[name]) for name in sorted(drawn())], repeated


def texts(pair: PreferencePair) -> tuple[str, str]:
    """The chosen and the rejected answer."""
    return pair.chosen[0]["content"], pair.rejected[0]["content"]


def swapped(pair: PreferencePair) -> bool:
    """Whether the rejected answer comes first: as the hashes of the texts fall, whichever of them is preferred."""
    chosen, rejected = (content_id([list(pair.prompt), text]) for text in texts(pair))
    return rejected < chosen


def _unusable(pair: PreferencePair) -> str:
    if not pair.paired:
        return "a single answer"
    if any(len(side) != 1 or side[0].get("extra") for side in (pair.chosen, pair.rejected)):
        return "an answer that is more than a text"
    return "the same answer twice" if len(set(texts(pair))) == 1 else ""


def _rollouts(name: str, pair: PreferencePair) -> Iterator[dict[str, Any]]:
    """Whose answers these are nobody knows, nor their tokens: words are counted instead."""
    sides = [(text, ended) for text, ended in zip(texts(pair), (pair.chosen_ended, pair.rejected_ended), strict=True)]
    for sample, (text, ended) in enumerate(reversed(sides) if swapped(pair) else sides):
        yield {
            "prompt_id": name, "sample": sample, "messages": pair.prompt, "tools": pair.tools, "metadata": "",
            "text": text, "tokens": len(text.split()), "finish_reason": "stop" if ended else "length",
            "prompt_ids": [], "ids": [], "policy": "", "sampling": "",
        }  # fmt: skip


def _label(name: str, pair: PreferencePair) -> dict[str, Any]:
    votes = [vote["preference"] for vote in pair.votes if vote["preference"] is not None]
    preference = sum(votes) / len(votes) if votes else pair.probability
    turn = swapped(pair)
    return {
        "prompt_id": name, "prompt_key": prompt_key(pair.prompt), "source": pair.source,
        "preference": 1 - preference if turn else preference,
        "votes": [1 - vote if turn else vote for vote in votes],
    }  # fmt: skip
