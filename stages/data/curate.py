"""All pairs of all files: votes become probabilities, filters and caps leave pairs out, some prompts are held out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.base import StageError, Summary
from stages.core.records import SELECTION, content_id, id_numbers, messages_of
from stages.data import labels, selection
from stages.data.badrows import BadRows, refuse_too_many
from stages.data.config import CurateConfig, FilterConfig
from stages.data.hashing import held_out, repeats, within_cap
from stages.data.seen import pairs_seen, prompt_keys
from stages.data.selection import Pairs
from stages.data.votes import BallotBox, Ballots, share
from stages.io.artifact import Artifact, Table, grouped
from stages.io.context import StageContext
from stages.io.filenames import ANNOTATORS, RECORDS
from stages.io.filenames import SELECTION as SELECTION_FILE
from stages.io.output import Output
from stages.io.parts import run_alone
from stages.io.tables import stream_columns

File = Sequence[Table]
"""The records of one of the user's files."""
Progress = Callable[[int, int, str], None]
_EVEN = 1e-6
"""A probability this close to one half is a tie; models do not hit it exactly."""
_NAMED = 20
"""Annotators that the summary names; the file next to the selection names all."""


def run(config: CurateConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Check how many rows could not be read, then ``curate``.

    Raises:
        StageError: too many of a source's rows are in quarantine, or no pair is left to train on.
    """
    _check_quarantine(config, grouped(inputs, "pairs"))
    made: Summary = run_alone("stages.data.curate:curate", context, config, dict(inputs))
    return made


def curate(output: Output, progress: Progress, config: CurateConfig, inputs: Mapping[str, Artifact]) -> Summary:
    """Write ``selection.arrow`` and, if there are votes, ``annotators.json``.

    A pair is left out, for the first of these reasons: an earlier tick of a schedule has ``seen`` it, filters, the
    user's held-out prompts, too few votes, a tie, a weight of zero. Then its source's cap counts those that remain.
    Then its prompt decides whether it is held out, and if it is not, its source's weight decides how often it is
    trained on. A held-out pair is seen once.

    With ``seen`` there may be no pair left to train on, since a tick may find nothing new: ``training`` is then 0.

    Raises:
        StageError: no pair is left to train on, and nothing was ``seen``.
    """
    files = [artifact.tables(RECORDS) for artifact in grouped(inputs, "pairs")]
    prompts = [table for artifact in grouped(inputs, "heldout") for table in artifact.tables(RECORDS)]
    pairs = Pairs([sum(table.rows for table in file) for file in files], config.source_of)
    seen = grouped(inputs, "seen")
    if seen:
        tables = [table for artifact in seen for table in artifact.tables(RECORDS)]
        pairs.leave_out(np.flatnonzero(pairs_seen(files, tables)), selection.SEEN_BEFORE)
    filters = _filter(config.filters, files, prompts, pairs, progress)
    boxes = _read(config, files, _numbers(sorted(prompt_keys(prompts))), pairs, progress)
    annotators: list[dict[str, Any]] = []
    for source, box in enumerate(boxes):
        if ballots := box.close():
            quality = _label(config, files, source, ballots, pairs)
            annotators += [{"source": source, "task": config.mix[source].task, **each} for each in quality]
    if config.labels.ties == "drop":
        pairs.leave_out(np.flatnonzero(np.abs(pairs.probability - 0.5) < _EVEN), selection.TIES)
    pairs.leave_out(np.flatnonzero(pairs.weight <= 0), selection.ZERO_WEIGHT)
    for source in range(len(config.mix)):
        _mix(config, source, pairs)
    tasks = [mix.task for mix in config.mix]
    sources = [{"task": task, **pairs.count(pairs.of_source(source))} for source, task in enumerate(tasks)]
    summary = {**pairs.count(), "filters": filters, "sources": sources}
    if not summary["training"] and not seen:
        raise StageError(_nothing_left(summary))
    with output.part("selection") as part:
        part.table(SELECTION_FILE, pairs.selected(tasks), SELECTION)
        if annotators:
            written = json.dumps(annotators, ensure_ascii=False, indent=1) + "\n"
            (part.folder / ANNOTATORS).write_text(written, "utf-8")
    if annotators:
        most = sorted(annotators, key=lambda each: -int(each["votes"]))[:_NAMED]
        summary |= {"annotators": most, "annotators_in_all": len(annotators)}
    return summary


def _check_quarantine(config: CurateConfig, artifacts: Sequence[Artifact]) -> None:
    for source, mix in enumerate(config.mix):
        own = [a.summary for a, number in zip(artifacts, config.source_of, strict=True) if number == source]
        rows = [BadRows(each.get("read", 0), each.get("quarantined", 0), each.get("quarantine_reasons", {}))
                for each in own]  # fmt: skip
        refuse_too_many(
            f"preferences.{source}" + (f" (task {mix.task})" if mix.task else ""), rows, config.max_bad_share
        )


def _filter(
    config: FilterConfig, files: Sequence[File], prompts: Sequence[Table], pairs: Pairs, progress: Progress
) -> dict[str, Any]:
    from stages.data.quality.filters import Filters

    found = Filters(config, prompts).examine(files, progress, pairs.reason > 0)
    for file, factors in enumerate(found.factors):
        pairs.weight[pairs.of_file(file)] = factors
    pairs.leave_out(np.flatnonzero(pairs.weight == 0), selection.FILTERS)
    return {"dropped": found.dropped, "down_weighted": found.down_weighted}


def _numbers(ids: Sequence[str]) -> NDArray[np.uint64]:
    return id_numbers(pa.chunked_array([pa.array(ids, pa.string())]))


def _read(
    config: CurateConfig, files: Sequence[File], prompts: NDArray[np.uint64], pairs: Pairs, progress: Progress
) -> list[BallotBox]:
    """Fill in what the files say about each pair; returns the votes of each source."""
    boxes = [BallotBox() for _ in config.mix]
    for number, file in enumerate(files):
        at = pairs.of_file(number).start
        for table in stream_columns(file, ["pair_id", "prompt_key", "probability", "weight", "votes"]):
            here = slice(at, at + table.num_rows)
            keys = id_numbers(table["prompt_key"])
            pairs.number[here] = id_numbers(table["pair_id"])
            pairs.probability[here] = table["probability"].to_numpy()
            pairs.weight[here] *= table["weight"].to_numpy()
            pairs.heldout[here] = held_out(keys, config.heldout)
            pairs.leave_out(at + np.flatnonzero(np.isin(keys, prompts)), selection.HELDOUT_PROMPTS)
            boxes[config.source_of[number]].add(table["votes"])
            at = here.stop
        progress(at, len(pairs), "pairs")
    return boxes


def _label(
    config: CurateConfig, files: Sequence[File], source: int, ballots: Ballots, pairs: Pairs
) -> list[dict[str, Any]]:
    """Set the probability of a source's pairs that were voted on; returns its annotators' quality. Which answer is
    called chosen stays as it is, even where most prefer the other: the probability is then below one half."""
    accuracy = None
    if config.labels.aggregate == "dawid_skene":
        probability, accuracy = labels.dawid_skene(ballots)
    elif config.labels.aggregate == "bradley_terry":
        own_files = [file for file, own in zip(files, config.source_of, strict=True) if own == source]
        probability = labels.bradley_terry(ballots, *_answers(own_files, ballots))
    else:
        probability = share(ballots)
    own = pairs.of_source(source)
    decided = ballots.asked & (ballots.counts >= config.labels.min_votes)
    pairs.probability[own[decided]] = probability[decided]
    pairs.leave_out(own[ballots.asked & ~decided], selection.TOO_FEW_VOTES)
    return labels.quality(ballots, accuracy)


def _answers(files: Sequence[File], ballots: Ballots) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Names for the chosen and the rejected answers of a source's pairs; 0 for pairs that nobody voted on. An answer
    has the same name under all prompts that differ only in case or white space."""
    names = np.zeros((2, len(ballots.asked)), np.uint64)
    at = 0
    for file in files:
        for table in stream_columns(file, ["prompt_key", "chosen", "rejected"]):
            voted = np.flatnonzero(ballots.asked[at : at + table.num_rows])
            some = table.take(pa.array(voted))
            keys = some["prompt_key"].to_pylist()
            for side, column in enumerate(("chosen", "rejected")):
                answers = [list(messages_of(answer)) for answer in some[column].to_pylist()]
                ids = [content_id([key, answer]) for key, answer in zip(keys, answers, strict=True)]
                names[side, at + voted] = _numbers(ids)
            at += table.num_rows
    return names[0], names[1]


def _mix(config: CurateConfig, source: int, pairs: Pairs) -> None:
    """A source's cap applies to all its remaining pairs, its weight to those that are trained on."""
    mix = config.mix[source]
    own = pairs.of_source(source)
    left = own[pairs.reason[own] == 0]
    kept = within_cap(pairs.number[left], mix.max_pairs)
    pairs.leave_out(left[~kept], selection.MAX_PAIRS)
    trained = left[kept & ~pairs.heldout[left]]
    pairs.repeats[trained] = repeats(pairs.number[trained], mix.weight)
    pairs.leave_out(trained[pairs.repeats[trained] == 0], selection.WEIGHT)


def _nothing_left(summary: Mapping[str, Any]) -> str:
    if not summary["pairs"]:
        return "there is nothing to train on: the files under preferences hold no pair that can be used"
    dropped = {**summary["dropped"], **summary["filters"]["dropped"]}
    dropped.pop(selection.REASONS[selection.FILTERS], None)
    reasons = ", ".join(f"{name} {count}" for name, count in dropped.items() if count)
    return (
        f"no pair is left to train on: of {summary['pairs']}, held out {summary['heldout']}"
        + (f", left out: {reasons}" if reasons else "")
        + ". docs/mixtures.md says which key each reason belongs to"
    )
