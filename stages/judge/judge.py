"""A judge scores or compares the rollouts, whole prompts at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

import pyarrow as pa

from stages.base import StageError, Summary
from stages.core.errors import RowError
from stages.core.records import JUDGEMENTS, VERDICTS
from stages.io.artifact import Artifact
from stages.io.context import StageContext
from stages.io.filenames import RECORDS, VERDICT_RECORDS
from stages.io.output import PartWriter
from stages.io.parts import run_parts
from stages.io.quarantine import Quarantine
from stages.judge import asking
from stages.judge.config import JudgeStageConfig
from stages.judge.judges.make import make
from stages.judge.protocol import Judgement, NoVerdict, Row, Verdict

_SPENT = ("input_tokens", "output_tokens", "cost", "seconds")


def run(config: JudgeStageConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Judge every rollout; a part has the ``records.arrow`` of a part of the rollouts, in their order, and from a judge
    that compares also ``verdicts.arrow``. What the judge has no score for goes to quarantine.

    With ``against``, the rollouts of another policy for the same prompts, the samples of both are compared one by one:
    then ``verdicts.arrow`` is all there is.

    Raises:
        StageError: the judge left something out, judged something twice, or had no verdict for too many.
    """
    tables = inputs["rollouts"].tables(RECORDS)
    tasks = [{"part": table.part.name, "rows": table.rows, "table": number} for number, table in enumerate(tables)]
    every = sum(table.rows for table in tables)
    try:
        counts = run_parts(
            tasks, "stages.judge.judge:Judging", context, "answers", config=config, rollouts=inputs["rollouts"],
            against=inputs.get("against"), every=every,
        )  # fmt: skip
        judged = counts.get("judgements", 0) or counts["verdicts"]
        refuse_many(config, counts["quarantine_reasons"], counts["quarantined"], every, nothing=not judged)
    except StageError:
        _ask_again(context)
        raise
    quarantine = {name: counts[name] for name in ("quarantined", "quarantine_reasons")}
    mean = {} if "against" in inputs else {"judgements": judged, "mean_score": counts["score"] / judged}
    return {**mean, **_compared(counts), **_spent(counts), **quarantine}


def refuse_many(config: JudgeStageConfig, why: Mapping[str, int], refused: int, every: int, nothing: bool) -> None:
    """Raises:
    StageError: the judge had no verdict for more than the spec allows.
    """
    if nothing or refused > config.max_bad_share * every:
        name = config.judge.use
        raise StageError(
            f"judge {name} has no verdict for {refused} of {every} answers, more than max_bad_share "
            f"{config.max_bad_share:g} allows: {dict(why)}. Mend the judge, or raise data.max_bad_share"
        )


def _ask_again(context: StageContext) -> None:
    """Parts with answers that may be judged the next time are made again then; what was judged is not paid twice."""
    for part in context.output.done().values():
        if part.counts.get("passing"):
            context.output.discard(part)


def _compared(counts: Mapping[str, Any]) -> dict[str, Any]:
    if not counts["verdicts"]:
        return {}
    position = {name: counts[name] for name in ("asked_twice", "agreed", "first_place", "second_place")}
    return {"verdicts": counts["verdicts"], "ties": counts["ties"], "position": position}


def _spent(counts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: counts[name] for name in _SPENT if counts[name]}


class Judging:
    """Holds the judge; judges parts of the rollouts."""

    def __init__(self, config: JudgeStageConfig, rollouts: Artifact, against: Artifact | None, every: int) -> None:
        self._config, self._every = config, every
        self._judge = make(config.judge)
        self._tables = rollouts.tables(RECORDS)
        self._against = {table.part.name: table for table in against.tables(RECORDS)} if against is not None else None
        self._refused: Counter[str] = Counter()

    def __call__(self, task: Mapping[str, Any], part: PartWriter) -> None:
        table = self._tables[task["table"]]
        rollouts = asking.read_rollouts(table)
        compares = self._config.judge.compares
        if self._against is None:
            rows = asking.rows_of(rollouts, compares)
        else:
            other = self._against.get(table.part.name)
            rows = asking.rows_against(rollouts, asking.read_rollouts(other) if other else [])
        answer = asking.answered(self._config.judge.use, rows, self._judge(rows), compares)
        if compares and self._against is None:
            _score(answer, rows)
        self._write(answer, rows, part)

    def _write(self, answer: asking.Answered, rows: Sequence[Row], part: PartWriter) -> None:
        quarantine = part.quarantine
        for row, refused in answer.refused:
            quarantine.add(_refused(row, refused))
            self._refused[refused.reason] += 1
        refuse_many(self._config, self._refused, self._refused.total(), self._every, nothing=False)
        by_id = {row.prompt_id: row for row in rows}
        verdicts = [asdict(asking.by_samples(by_id[each.prompt_id], each)) for each in answer.verdicts]
        if self._config.judge.compares:
            part.table(VERDICT_RECORDS, [pa.Table.from_pylist(verdicts, schema=VERDICTS)], VERDICTS)
        if self._against is None:
            judgements = [asdict(each) for each in answer.judgements]
            part.table(RECORDS, [pa.Table.from_pylist(judgements, schema=JUDGEMENTS)], JUDGEMENTS)
        part.counts |= _counted(answer)

    def close(self) -> None:
        if hasattr(self._judge, "close"):
            self._judge.close()


def _score(answer: asking.Answered, rows: Sequence[Row]) -> None:
    """Add the scores that follow from the verdicts. An answer has none if no comparison of it has; the comparisons
    themselves are no rows of their own, so that those without a verdict do not count twice."""
    verdicts = {key: list(group) for key, group in groupby(answer.verdicts, lambda each: each.prompt_id)}
    why = {row.prompt_id: refused for row, refused in answer.refused}
    answer.refused.clear()
    for row in rows:
        for each in asking.scores(row, verdicts.get(row.prompt_id, [])):
            if isinstance(each, Judgement):
                answer.judgements.append(each)
            else:
                reason = why[row.prompt_id]
                refused = NoVerdict(row.prompt_id, each.places, reason.reason, reason.passing)
                answer.refused.append((row, refused))


def _counted(answer: asking.Answered) -> dict[str, Any]:
    """What is added up over the parts."""
    stated: list[Judgement | Verdict] = [*answer.judgements, *answer.verdicts]
    twice = [(v.shown, v.swapped) for v in answer.verdicts if v.shown is not None and v.swapped is not None]
    return {
        "judgements": len(answer.judgements),
        "score": float(sum(each.score for each in answer.judgements)),
        "verdicts": len(answer.verdicts),
        "ties": sum(each.preference == 0.5 for each in answer.verdicts),
        "passing": sum(refused.passing for _, refused in answer.refused),
        "asked_twice": len(twice),
        "agreed": sum(shown == swapped for shown, swapped in twice),
        "first_place": sum(shown > swapped for shown, swapped in twice),
        "second_place": sum(shown < swapped for shown, swapped in twice),
        **{name: sum(getattr(each, name) for each in stated) for name in _SPENT},
    }


def _refused(row: Row, refused: NoVerdict) -> dict[str, str]:
    samples = " against ".join(f"sample {row.responses[place].sample}" for place in refused.places)
    text = row.responses[refused.places[0]].text
    return Quarantine.row(f"prompt {row.prompt_id} {samples}", RowError("score", refused.reason), text)
