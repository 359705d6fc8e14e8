"""A language model criticises answers by principles and revises them: constitutional preference data."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import pyarrow as pa

from stages.base import StageError, Summary
from stages.core.errors import RowError
from stages.core.records import PAIRS, PreferencePair, Rollout, pair_row
from stages.io.artifact import Artifact
from stages.io.context import StageContext
from stages.io.filenames import CRITIQUES, RECORDS
from stages.io.output import PartWriter
from stages.io.parts import run_parts
from stages.io.quarantine import Quarantine
from stages.judge import spending
from stages.judge.asking import read_rollouts, rows_of
from stages.judge.judges.llm.config import ReviseConfig
from stages.judge.judges.llm.kept import Reply, Unanswered
from stages.judge.judges.llm.revision import Revision, Revisions
from stages.judge.judges.means import Means, asker, environment


class _Asked(NamedTuple):
    """An answer that is revised, by a principle (its place in the constitution)."""

    answer: Rollout
    principle: int


def run(config: ReviseConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Pairs of a revised answer (chosen) and the original; a part has those of a part of the rollouts, and
    ``critiques.jsonl``. An answer that the model leaves as it is makes no pair.

    Raises:
        StageError: too many answers have no revision.
    """
    tables = inputs["rollouts"].tables(RECORDS)
    tasks = [{"part": table.part.name, "rows": table.rows, "table": number} for number, table in enumerate(tables)]
    means = spending.means(inputs, context)
    try:
        counts = run_parts(
            tasks, "stages.judge.revise:Revising", context, "answers", environment(config, means.gpus > 0),
            config=config, rollouts=inputs["rollouts"], means=means,
        )  # fmt: skip
        pairs, refused, asked = counts["rows"], counts["quarantined"], counts["asked"]
        if refused > config.max_bad_share * asked:
            raise StageError(
                f"revise: {refused} of {asked} answers have no revision, more than max_bad_share "
                f"{config.max_bad_share:g} allows: {counts['quarantine_reasons']}"
            )
    except StageError:
        spending.ask_again(context)
        raise
    names = ("asked", "unchanged", "quarantined", "quarantine_reasons")
    return {"pairs": pairs, **{name: counts[name] for name in names}, **spending.spent(counts)}


class Revising:
    """Holds the language model; revises parts of the rollouts."""

    def __init__(self, config: ReviseConfig, rollouts: Artifact, means: Means) -> None:
        self._config, self._tables = config, rollouts.tables(RECORDS)
        self._words = Revisions()
        self._asker = asker(config, means, self._words.read)
        self._paid = self._asker.paid

    def __call__(self, task: Mapping[str, Any], part: PartWriter) -> None:
        asked = list(self._answers(read_rollouts(self._tables[task["table"]])))
        rows = {row.prompt_id: row for row in rows_of([each.answer for each in asked], False)}
        principles = self._config.constitution
        questions = [
            self._words.question(rows[each.answer.prompt_id], each.answer.text, principles[each.principle])
            for each in asked
        ]
        replies = self._asker.replies(questions)
        self._write(asked, replies, part)
        paid, before = self._asker.paid, self._paid
        part.counts |= {"paid_tokens": paid[0] - before[0], "paid_cost": paid[1] - before[1]}
        self._paid = paid

    def close(self) -> None:
        self._asker.close()

    def _answers(self, rollouts: Sequence[Rollout]) -> Iterator[_Asked]:
        """The first answers to each prompt that say something, each text once."""
        for prompt, group in groupby(rollouts, lambda each: each.prompt_id):
            texts = {each.text.strip(): each for each in reversed(list(group)) if each.text.strip()}
            answers = sorted(texts.values(), key=lambda each: each.sample)
            for each in answers[: self._config.answers]:
                drawn = random.Random(f"{self._config.seed}/{prompt}/{each.sample}").random()
                yield _Asked(each, int(drawn * len(self._config.constitution)))

    def _write(self, asked: Sequence[_Asked], replies: Sequence[Reply | Unanswered], part: PartWriter) -> None:
        quarantine, pairs, critiques = part.quarantine, [], []
        passing = 0
        spent = dict.fromkeys(spending.SPENT, 0.0)
        for each, reply in zip(asked, replies, strict=True):
            if isinstance(reply, Unanswered):
                place = f"prompt {each.answer.prompt_id} sample {each.answer.sample}"
                quarantine.add(Quarantine.row(place, RowError("revision", reply.reason), each.answer.text))
                passing += reply.passing
                continue
            spent = {name: value + getattr(reply, name) for name, value in spent.items()}
            found = self._words.read(reply)
            critiques.append(self._critique(each, found))
            if found.text.split() != each.answer.text.split():
                pairs.append(pair_row(_pair(each, found)))
        part.table(RECORDS, [pa.Table.from_pylist(pairs, schema=PAIRS)], PAIRS)
        lines = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in critiques)
        (part.folder / CRITIQUES).write_text(lines, encoding="utf-8")
        unchanged = len(critiques) - len(pairs)
        part.counts |= {"asked": len(asked), "unchanged": unchanged, "passing": passing, **spent}

    def _critique(self, each: _Asked, found: Revision) -> dict[str, Any]:
        return {
            "prompt_id": each.answer.prompt_id, "sample": each.answer.sample,
            "principle": self._config.constitution[each.principle], "critique": found.critique,
        }  # fmt: skip


def _pair(each: _Asked, found: Revision) -> PreferencePair:
    answer = each.answer
    return PreferencePair(
        prompt=answer.messages,
        chosen=({"role": "assistant", "content": found.text},),
        rejected=({"role": "assistant", "content": answer.text},),
        rejected_ended=answer.finish_reason == "stop",
        tools=answer.tools,
        source=f"prompt {answer.prompt_id} sample {answer.sample}, revised by principle {each.principle + 1}",
    )
