"""Several judges vote: their shares become preferences, and how much they agree is measured."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations, count
from typing import Any

import numpy as np
import pyarrow as pa

from stages.base import StageError, Summary
from stages.core.evaluation.agreement import krippendorff_alpha
from stages.core.records import JUDGEMENTS, VERDICTS
from stages.io.artifact import Artifact, Table
from stages.io.context import StageContext
from stages.io.filenames import RECORDS, VERDICT_RECORDS
from stages.io.output import Output
from stages.io.parts import run_alone
from stages.io.tables import rows_of
from stages.judge.asking import shares_of_wins
from stages.judge.config import VoteConfig
from stages.judge.protocol import Judgement, Verdict

Pair = tuple[str, int, int]
"""A prompt and two sample numbers; of two policies, the first is the new one's."""
Votes = dict[Pair, float]
"""A judge's preference for the first: 1, 0, or 0.5 for a tie."""
Cast = tuple[float | None, ...]
"""The votes of all judges on a pair; None of one that was silent."""


def run(config: VoteConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """The votes of the judges ``judged.N`` on any two answers to a prompt. A part has the verdicts, whose preference is
    the share of votes (a tie is half a one), and scores: an answer's mean share against the others.

    For the answers of two policies, judges that score give ``judged.N`` and ``against.N``, and those that compare
    ``verdicts.N``; then verdicts are all there is.

    Raises:
        StageError: no two answers have a vote.
    """
    made: Summary = run_alone("stages.judge.vote:vote", context, config, dict(inputs))
    return made


def vote(
    output: Output, progress: Callable[[int, int, str], None], config: VoteConfig, inputs: Mapping[str, Artifact]
) -> Summary:
    """Go through the parts of the judges, which are those of the answers."""
    judges = _judges(inputs)
    names = list(dict.fromkeys(part.name for judge in judges for part in judge[0].parts))
    cast: Counter[Cast] = Counter()
    scores: list[float] = []
    for number, name in enumerate(names):
        votes = [_votes(judge, name, config.margin) for judge in judges]
        pairs = sorted(pair for pair, voters in _voters(votes).items() if 2 * voters >= len(judges))
        said = [tuple(each.get(pair) for each in votes) for pair in pairs]
        cast.update(map(_turned, said, count(cast.total())))
        verdicts = [Verdict(*pair, _share(each)) for pair, each in zip(pairs, said, strict=True)]
        with output.part(name) as part:
            _write(part, VERDICT_RECORDS, verdicts, VERDICTS)
            if not _two_policies(inputs):
                won = sorted(shares_of_wins(verdicts).items())
                scores += [share for _, share in won]
                _write(part, RECORDS, [Judgement(*answer, share) for answer, share in won], JUDGEMENTS)
        progress(number + 1, len(names), "parts")
    if not cast:
        raise StageError("no two answers to a prompt have a vote of any judge")
    mean = {} if _two_policies(inputs) else {"judgements": len(scores), "mean_score": float(np.mean(scores))}
    return {**mean, "verdicts": cast.total(), **_agreement(cast)}


def _voters(votes: Sequence[Votes]) -> Counter[Pair]:
    return Counter(pair for each in votes for pair in each)


def _two_policies(inputs: Mapping[str, Artifact]) -> bool:
    return any(name.partition(".")[0] in ("against", "verdicts") for name in inputs)


def _judges(inputs: Mapping[str, Artifact]) -> list[tuple[Artifact, ...]]:
    """What each judge gave, in the spec's order: its verdicts or scores, or its scores of two policies."""
    numbers = sorted({int(name.partition(".")[2]) for name in inputs})
    kinds = ("verdicts", "judged", "against")
    return [tuple(inputs[f"{kind}.{n}"] for kind in kinds if f"{kind}.{n}" in inputs) for n in numbers]


def _votes(judge: Sequence[Artifact], part: str, margin: float) -> Votes:
    """A judge's votes on the answers of a part."""
    first = judge[0]
    if first.has(VERDICT_RECORDS):
        rows = rows_of(_tables(first, VERDICT_RECORDS, part))
        return {(row["prompt_id"], row["first"], row["second"]): _vote(row["preference"] - 0.5, 0.0) for row in rows}
    ours = _by_prompt(first, part)
    if len(judge) == 1:
        return {
            (prompt, one, two): _vote(scores[one] - scores[two], margin)
            for prompt, scores in ours.items()
            for one, two in combinations(sorted(scores), 2)
        }
    theirs = _by_prompt(judge[1], part)
    return {
        (prompt, sample, sample): _vote(score - theirs[prompt][sample], margin)
        for prompt, scores in ours.items()
        for sample, score in scores.items()
        if sample in theirs.get(prompt, {})
    }


def _tables(artifact: Artifact, name: str, part: str) -> list[Table]:
    return [table for table in artifact.tables(name) if table.part.name == part]


def _by_prompt(judged: Artifact, part: str) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for row in rows_of(_tables(judged, RECORDS, part)):
        found[row["prompt_id"]][row["sample"]] = row["score"]
    return found


def _vote(difference: float, margin: float) -> float:
    return 0.5 if abs(difference) <= margin else float(difference > 0)


def _share(votes: Sequence[float | None]) -> float:
    return float(np.mean([each for each in votes if each is not None]))


def _turned(votes: Cast, number: int) -> Cast:
    """Every second pair is turned round: where one side is always the same policy and wins, judges would agree on
    nearly all by chance, too."""
    return tuple(None if vote is None else 1 - vote for vote in votes) if number % 2 else votes


def _agreement(cast: Counter[Cast]) -> dict[str, Any]:
    """Krippendorff's alpha, a tie being half way, and for any two judges the share of votes in which they agree."""
    times = list(cast.values())
    judges = list(zip(*cast, strict=True))
    alpha = krippendorff_alpha(judges, "linear", times)
    pairs = {}
    for one, two in combinations(range(len(judges)), 2):
        both = [
            (a == b, each)
            for a, b, each in zip(judges[one], judges[two], times, strict=True)
            if a is not None and b is not None
        ]
        if both:
            pairs[f"{one}, {two}"] = sum(same * each for same, each in both) / sum(each for _, each in both)
    same = 1.0 if pairs else None  # alpha is not a number: all said the same, or no two spoke of the same
    return {"agreement": alpha if np.isfinite(alpha) else same, "agreement_of_two": pairs}


def _write(part: Any, name: str, records: Sequence[Any], schema: pa.Schema) -> None:
    part.table(name, [pa.Table.from_pylist([asdict(each) for each in records], schema=schema)], schema)
