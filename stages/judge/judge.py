"""A judge scores or compares the rollouts, whole prompts at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
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
from stages.judge import asking, spending
from stages.judge.config import JudgeStageConfig
from stages.judge.judges.make import make
from stages.judge.judges.means import Means, environment
from stages.judge.judges.rewards.config import ImplicitReward
from stages.judge.protocol import Judgement, NoVerdict, Row, Verdict


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
    means = spending.means(inputs, context)
    try:
        counts = run_parts(
            tasks, "stages.judge.judge:Judging", context, "answers", environment(config.judge, means.gpus > 0),
            config=config, rollouts=inputs["rollouts"],
            against=inputs.get("against"), every=sum(table.rows for table in tables), means=means,
        )  # fmt: skip
        judged, asked = counts["judgements"] or counts["verdicts"], counts["asked"]
        if not judged or counts["quarantined"] > config.max_bad_share * asked:
            raise _too_many(config, counts["quarantined"], asked, counts["quarantine_reasons"])
    except StageError:
        spending.ask_again(context)
        raise
    quarantine = {name: counts[name] for name in ("quarantined", "quarantine_reasons")}
    mean = {} if "against" in inputs else {"judgements": judged, "mean_score": counts["score"] / judged}
    return {**mean, **_compared(counts), **spending.spent(counts), **quarantine}


def _too_many(config: JudgeStageConfig, refused: int, asked: int, why: Mapping[str, int]) -> StageError:
    what = "comparisons" if config.judge.compares else "answers"
    return StageError(
        f"judge {config.judge.use} has no verdict for {refused} of {asked} {what}, more than max_bad_share "
        f"{config.max_bad_share:g} allows: {dict(why)}. Mend the judge, or raise data.max_bad_share"
    )


def _compared(counts: Mapping[str, Any]) -> dict[str, Any]:
    if not counts["verdicts"]:
        return {}
    position = {name: counts[name] for name in ("asked_twice", "agreed", "first_place", "second_place")}
    return {"verdicts": counts["verdicts"], "ties": counts["ties"], "position": position}


class Judging:
    """Holds the judge; judges parts of the rollouts."""

    def __init__(
        self, config: JudgeStageConfig, rollouts: Artifact, against: Artifact | None, every: int, means: Means
    ) -> None:
        self._config, self._every = config, every
        self._judge = make(config.judge, means)
        self._paid = getattr(self._judge, "paid", (0, 0.0))
        self._tables = rollouts.tables(RECORDS)
        self._against = {table.part.name: table for table in against.tables(RECORDS)} if against is not None else None
        self._refused: Counter[str] = Counter()
        self._asked = self._seen = 0

    def __call__(self, task: Mapping[str, Any], part: PartWriter) -> None:
        table = self._tables[task["table"]]
        rollouts = asking.read_rollouts(table, isinstance(self._config.judge, ImplicitReward))
        compares = self._config.judge.compares
        if self._against is None:
            rows = asking.rows_of(rollouts, compares)
        else:
            other = self._against.get(table.part.name)
            rows = asking.rows_against(rollouts, asking.read_rollouts(other) if other else [])
        answer = asking.answered(self._config.judge.use, rows, self._judge(rows), compares)
        if compares and self._against is None:
            answer.judgements.extend(asking.scores(rows, answer.verdicts))
        self._write(answer, rows, part)
        self._count(answer, len(rollouts), part)

    def _write(self, answer: asking.Answered, rows: Sequence[Row], part: PartWriter) -> None:
        quarantine = part.quarantine
        for row, refused in answer.refused:
            quarantine.add(_refused(row, refused))
        by_id = {row.prompt_id: row for row in rows}
        verdicts = [asdict(asking.by_samples(by_id[each.prompt_id], each)) for each in answer.verdicts]
        if self._config.judge.compares:
            part.table(VERDICT_RECORDS, [pa.Table.from_pylist(verdicts, schema=VERDICTS)], VERDICTS)
        if self._against is None:
            judgements = [asdict(each) for each in answer.judgements]
            part.table(RECORDS, [pa.Table.from_pylist(judgements, schema=JUDGEMENTS)], JUDGEMENTS)

    def _count(self, answer: asking.Answered, rollouts: int, part: PartWriter) -> None:
        """Raises:
        StageError: so much is without a verdict that the stage will fail in the end.
        """
        part.counts |= _counted(answer)
        if paid := getattr(self._judge, "paid", None):
            before = self._paid
            part.counts |= {"paid_tokens": paid[0] - before[0], "paid_cost": paid[1] - before[1]}
            self._paid = paid
        self._refused.update(refused.reason for _, refused in answer.refused)
        self._asked, self._seen = self._asked + part.counts["asked"], self._seen + rollouts
        expected = self._asked * self._every / max(1, self._seen)  # a part may have no answers at all
        if self._refused.total() > self._config.max_bad_share * expected:
            raise _too_many(self._config, self._refused.total(), self._asked, self._refused)

    def close(self) -> None:
        if hasattr(self._judge, "close"):
            self._judge.close()


def _counted(answer: asking.Answered) -> dict[str, Any]:
    """What is added up over the parts."""
    stated: list[Judgement | Verdict] = [*answer.judgements, *answer.verdicts]
    twice = [(v.shown, v.swapped) for v in answer.verdicts if v.shown is not None and v.swapped is not None]
    return {
        "judgements": len(answer.judgements),
        "score": float(sum(each.score for each in answer.judgements)),
        "verdicts": len(answer.verdicts),
        "ties": sum(each.preference == 0.5 for each in answer.verdicts),
        "asked": len(answer.verdicts or answer.judgements) + len(answer.refused),
        "passing": sum(refused.passing for _, refused in answer.refused),
        "asked_twice": len(twice),
        "agreed": sum(shown == swapped for shown, swapped in twice),
        "first_place": sum(shown > swapped for shown, swapped in twice),
        "second_place": sum(shown < swapped for shown, swapped in twice),
        **{name: sum(getattr(each, name) for each in stated) for name in spending.SPENT},
    }


def _refused(row: Row, refused: NoVerdict) -> dict[str, str]:
    samples = " against ".join(f"sample {row.responses[place].sample}" for place in refused.places)
    text = row.responses[refused.places[0]].text
    return Quarantine.row(f"prompt {row.prompt_id} {samples}", RowError("score", refused.reason), text)
